//! The same functions from the crates `ibverbs` and `ibverbs-sys`, and proof that they see the
//! same structs as [`sys`] does: bindgen reads them out of rdma-core's headers.
//!
//! A binary with this feature is linked to libibverbs.so.1 and does not start where that is
//! missing; so the feature is off by default.
#![expect(unsafe_code, reason = "names the functions of a C library by other types")]

use std::mem::{offset_of, size_of, transmute};
use std::net::Ipv6Addr;

use ibverbs_sys as theirs;

use super::cards::{Card, Gid, GidKind};
use super::error::VerbsError;
use super::sys::{self, Table};

macro_rules! table {
    ($($symbol:ident)*) => {
        Table { $($symbol: {
            let function = theirs::$symbol as *const ();
            // SAFETY: the function of this name, whose arguments are pointers to structs that are
            // laid out alike, as shown below, and integers of the same sizes.
            unsafe { transmute::<*const (), _>(function) }
        },)* }
    };
}

/// The linked functions.
#[expect(clippy::missing_transmute_annotations, reason = "the types are those of the fields")]
pub(super) fn table() -> Table {
    table! {
        ibv_get_device_list ibv_free_device_list ibv_get_device_name ibv_open_device
        ibv_close_device ibv_query_device ibv_query_port ibv_query_gid ibv_alloc_pd ibv_dealloc_pd
        ibv_reg_mr ibv_dereg_mr ibv_create_comp_channel ibv_destroy_comp_channel ibv_create_cq
        ibv_destroy_cq ibv_get_cq_event ibv_ack_cq_events ibv_create_qp ibv_modify_qp ibv_query_qp
        ibv_destroy_qp ibv_get_async_event ibv_ack_async_event
    }
}

/// Names of all devices, as the crate lists them.
pub(super) fn device_names() -> Result<Vec<String>, VerbsError> {
    let devices = ibverbs::devices()
        .map_err(|error| VerbsError::NoKernel { errno: error.raw_os_error().unwrap_or(0) })?;
    let names = devices.iter().filter_map(|device| Some(device.name()?.to_str().ok()?.to_string()));
    Ok(names.collect())
}

/// Replaces a card's addresses by those that the crate reads from the device. It opens only
/// devices whose first port is active; the others keep what sysfs told.
pub(super) fn fill_gids(card: &mut Card) {
    let Ok(devices) = ibverbs::devices() else { return };
    let named = |device: &ibverbs::Device<'_>| {
        device.name().is_some_and(|name| name.to_bytes() == card.name.as_bytes())
    };
    let Some(Ok(context)) = devices.iter().find(named).map(|device| device.open()) else { return };
    for port in &mut card.ports {
        let before = std::mem::take(&mut port.gids);
        for entry in context.gid_table() {
            let Ok(index) = u8::try_from(entry.gid_index) else { continue };
            if entry.port_num != u32::from(port.number) {
                continue;
            }
            let bits =
                u128::from(entry.gid.subnet_prefix()) << 64 | u128::from(entry.gid.interface_id());
            let kind = match entry.gid_type {
                theirs::IBV_GID_TYPE_ROCE_V2 => GidKind::RoceV2,
                theirs::IBV_GID_TYPE_ROCE_V1 => GidKind::RoceV1,
                _ => GidKind::Infiniband,
            };
            let known = before.iter().find(|gid| gid.index == index);
            let netdev = known.and_then(|gid| gid.netdev.clone());
            let up = known.is_none_or(|gid| gid.up);
            port.gids.push(Gid { index, address: Ipv6Addr::from_bits(bits), kind, netdev, up });
        }
    }
}

/// Same size, and each field of the same name at the same place.
macro_rules! same {
    ($ours:ident = $theirs:ident { $($field:ident),* }) => {
        const _: () = {
            assert!(size_of::<sys::$ours>() == size_of::<theirs::$theirs>());
            same!(head $ours = $theirs { $($field),* });
        };
    };
    (head $ours:ident = $theirs:ident { $($field:ident),* }) => {
        const _: () = {
            $(assert!(offset_of!(sys::$ours, $field) == offset_of!(theirs::$theirs, $field));)*
        };
    };
}

same!(ContextOps = ibv_context_ops { poll_cq, req_notify_cq, post_send, post_recv });
same!(head Context = ibv_context { device, ops, cmd_fd, async_fd });
same!(Mr = ibv_mr { addr, length, lkey, rkey });
same!(CompChannel = ibv_comp_channel { fd });
same!(head Cq = ibv_cq { cqe });
same!(head Qp = ibv_qp { qp_num });
same!(
    DeviceAttr = ibv_device_attr {
        max_mr_size,
        max_qp,
        max_qp_wr,
        max_sge,
        max_sge_rd,
        max_cqe,
        max_mr,
        max_qp_rd_atom,
        max_qp_init_rd_atom,
        atomic_cap,
        phys_port_cnt
    }
);
// This one grows with every few versions; ours has room for more.
same!(head PortAttr = ibv_port_attr {
    state, active_mtu, gid_tbl_len, max_msg_sz, lid, link_layer
});
const _: () = assert!(size_of::<sys::PortAttr>() >= size_of::<theirs::ibv_port_attr>());
same!(Sge = ibv_sge { addr, length, lkey });
same!(SendWr = ibv_send_wr { wr_id, next, sg_list, num_sge, opcode, send_flags, wr });
const _: () = {
    assert!(offset_of!(sys::SendWr, imm_data) == offset_of!(theirs::ibv_send_wr, send_flags) + 4);
    assert!(offset_of!(sys::SendWr, unused) == offset_of!(theirs::ibv_send_wr, qp_type));
};
same!(Remote = ibv_send_wr__bindgen_ty_2 { rdma, atomic });
same!(RemoteRange = ibv_send_wr__bindgen_ty_2__bindgen_ty_1 { remote_addr, rkey });
same!(
    RemoteWord = ibv_send_wr__bindgen_ty_2__bindgen_ty_2 { remote_addr, compare_add, swap, rkey }
);
same!(RecvWr = ibv_recv_wr { wr_id, next, sg_list, num_sge });
// Its other fields are private there.
same!(Completion = ibv_wc { qp_num });
same!(QpCap = ibv_qp_cap { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data });
same!(
    QpInitAttr = ibv_qp_init_attr { qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all }
);
same!(GlobalRoute = ibv_global_route { dgid, flow_label, sgid_index, hop_limit, traffic_class });
same!(AhAttr = ibv_ah_attr { grh, dlid, sl, src_path_bits, static_rate, is_global, port_num });
same!(
    QpAttr = ibv_qp_attr {
        qp_state,
        cur_qp_state,
        path_mtu,
        path_mig_state,
        qkey,
        rq_psn,
        sq_psn,
        dest_qp_num,
        qp_access_flags,
        cap,
        ah_attr,
        alt_ah_attr,
        pkey_index,
        alt_pkey_index,
        en_sqd_async_notify,
        sq_draining,
        max_rd_atomic,
        max_dest_rd_atomic,
        min_rnr_timer,
        port_num,
        timeout,
        retry_cnt,
        rnr_retry,
        alt_port_num,
        alt_timeout,
        rate_limit
    }
);
same!(AsyncEvent = ibv_async_event { element, event_type });

// The numbers, too. Masks are newtypes of unsigned integers there, and ints in the functions.
const _: () = {
    use theirs::{ibv_access_flags as access, ibv_qp_attr_mask as mask, ibv_send_flags as send};
    use theirs::{ibv_qp_state as state, ibv_wr_opcode as opcode};
    assert!(sys::QPT_RC == theirs::ibv_qp_type::IBV_QPT_RC);
    assert!(sys::QPS_RESET == state::IBV_QPS_RESET && sys::QPS_INIT == state::IBV_QPS_INIT);
    assert!(sys::QPS_RTR == state::IBV_QPS_RTR && sys::QPS_RTS == state::IBV_QPS_RTS);
    assert!(sys::QPS_ERR == state::IBV_QPS_ERR);
    assert!(sys::WR_RDMA_WRITE == opcode::IBV_WR_RDMA_WRITE);
    assert!(sys::WR_SEND == opcode::IBV_WR_SEND);
    assert!(sys::WR_RDMA_READ == opcode::IBV_WR_RDMA_READ);
    assert!(sys::WR_ATOMIC_CMP_AND_SWP == opcode::IBV_WR_ATOMIC_CMP_AND_SWP);
    assert!(sys::WR_ATOMIC_FETCH_AND_ADD == opcode::IBV_WR_ATOMIC_FETCH_AND_ADD);
    assert!(sys::SEND_FENCE == send::IBV_SEND_FENCE.0);
    assert!(sys::SEND_SIGNALED == send::IBV_SEND_SIGNALED.0);
    assert!(sys::SEND_INLINE == send::IBV_SEND_INLINE.0);
    assert!(sys::ACCESS_LOCAL_WRITE == access::IBV_ACCESS_LOCAL_WRITE.0);
    assert!(sys::ACCESS_REMOTE_WRITE == access::IBV_ACCESS_REMOTE_WRITE.0);
    assert!(sys::ACCESS_REMOTE_READ == access::IBV_ACCESS_REMOTE_READ.0);
    assert!(sys::ACCESS_REMOTE_ATOMIC == access::IBV_ACCESS_REMOTE_ATOMIC.0);
    assert!(sys::PORT_ACTIVE == theirs::ibv_port_state::IBV_PORT_ACTIVE);
    assert!(sys::EVENT_PORT_ERR == theirs::IBV_EVENT_PORT_ERR);
    assert!(sys::EVENT_GID_CHANGE == theirs::IBV_EVENT_GID_CHANGE);
    let all = sys::QP_STATE | sys::QP_ACCESS_FLAGS | sys::QP_PKEY_INDEX | sys::QP_PORT | sys::QP_AV;
    let of_theirs = mask::IBV_QP_STATE.0
        | mask::IBV_QP_ACCESS_FLAGS.0
        | mask::IBV_QP_PKEY_INDEX.0
        | mask::IBV_QP_PORT.0
        | mask::IBV_QP_AV.0;
    assert!(all.cast_unsigned() == of_theirs);
    let all = sys::QP_PATH_MTU | sys::QP_TIMEOUT | sys::QP_RETRY_CNT | sys::QP_RNR_RETRY;
    let of_theirs = mask::IBV_QP_PATH_MTU.0
        | mask::IBV_QP_TIMEOUT.0
        | mask::IBV_QP_RETRY_CNT.0
        | mask::IBV_QP_RNR_RETRY.0;
    assert!(all.cast_unsigned() == of_theirs);
    assert!(sys::QP_RQ_PSN.cast_unsigned() == mask::IBV_QP_RQ_PSN.0);
    assert!(sys::QP_SQ_PSN.cast_unsigned() == mask::IBV_QP_SQ_PSN.0);
    assert!(sys::QP_DEST_QPN.cast_unsigned() == mask::IBV_QP_DEST_QPN.0);
    assert!(sys::QP_MIN_RNR_TIMER.cast_unsigned() == mask::IBV_QP_MIN_RNR_TIMER.0);
    assert!(sys::QP_MAX_QP_RD_ATOMIC.cast_unsigned() == mask::IBV_QP_MAX_QP_RD_ATOMIC.0);
    assert!(sys::QP_MAX_DEST_RD_ATOMIC.cast_unsigned() == mask::IBV_QP_MAX_DEST_RD_ATOMIC.0);
};
