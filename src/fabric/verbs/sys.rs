//! What libibverbs looks like from C: its structs, its numbers, and the functions that we call.
//!
//! Declared here and not taken from a binding, since every build must hold it and none may need
//! the library, its headers or a C compiler. Only what has been part of the library's stable ABI
//! since rdma-core 17 (2018) is used. The data path is not among its exported functions: in C it
//! is inline, and goes through the function pointers in the context; so it does here.
//!
//! **Invariants**: layouts are those of `infiniband/verbs.h` on 64-bit Linux. Structs that we make
//! are declared whole, their sizes asserted; of those that the library makes only the head is
//! declared, and they are only reached through pointers. Feature `ibverbs` holds all of it against
//! the layouts that bindgen finds.
#![expect(unsafe_code, reason = "declares the functions of a C library")]

use std::ffi::{c_char, c_int, c_void};
use std::mem::size_of;

/// Functions of the library, one field each, filled at run time.
macro_rules! table {
    ($($(#[$doc:meta])* $symbol:ident: fn($($argument:ty),*) -> $result:ty;)*) => {
        /// The functions that we call, wherever they came from.
        #[derive(Clone, Copy, Debug)]
        pub(super) struct Table {
            $($(#[$doc])* pub(super) $symbol: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        #[cfg(test)]
        impl Table {
            /// Functions that do nothing, and say that they could not.
            pub(super) fn hollow() -> Self {
                Self { $($symbol: {
                    extern "C" fn hollow($(_: $argument),*) -> $result {
                        <$result as Nothing>::NOTHING
                    }
                    hollow
                },)* }
            }
        }

        #[cfg(not(feature = "ibverbs"))]
        impl Table {
            /// Looks every function up in a loaded library, which stays loaded for ever.
            ///
            /// # Errors
            /// The name of the first that is missing.
            pub(super) fn load(
                library: &'static libloading::Library,
            ) -> Result<Self, &'static str> {
                Ok(Self { $($symbol: {
                    // SAFETY: the type is that of the function of this name in the stable ABI of
                    // libibverbs; the pointer stays good, as the library is never unloaded.
                    let found = unsafe {
                        library.get(concat!(stringify!($symbol), "\0").as_bytes())
                    };
                    *found.map_err(|_| stringify!($symbol))?
                },)* })
            }
        }
    };
}

table! {
    ibv_get_device_list: fn(*mut c_int) -> *mut *mut Device;
    ibv_free_device_list: fn(*mut *mut Device) -> ();
    ibv_get_device_name: fn(*mut Device) -> *const c_char;
    ibv_open_device: fn(*mut Device) -> *mut Context;
    ibv_close_device: fn(*mut Context) -> c_int;
    ibv_query_device: fn(*mut Context, *mut DeviceAttr) -> c_int;
    ibv_query_port: fn(*mut Context, u8, *mut PortAttr) -> c_int;
    ibv_query_gid: fn(*mut Context, u8, c_int, *mut [u8; 16]) -> c_int;
    ibv_alloc_pd: fn(*mut Context) -> *mut Pd;
    ibv_dealloc_pd: fn(*mut Pd) -> c_int;
    ibv_reg_mr: fn(*mut Pd, *mut c_void, usize, c_int) -> *mut Mr;
    ibv_dereg_mr: fn(*mut Mr) -> c_int;
    ibv_create_comp_channel: fn(*mut Context) -> *mut CompChannel;
    ibv_destroy_comp_channel: fn(*mut CompChannel) -> c_int;
    ibv_create_cq: fn(*mut Context, c_int, *mut c_void, *mut CompChannel, c_int) -> *mut Cq;
    ibv_destroy_cq: fn(*mut Cq) -> c_int;
    ibv_get_cq_event: fn(*mut CompChannel, *mut *mut Cq, *mut *mut c_void) -> c_int;
    ibv_ack_cq_events: fn(*mut Cq, u32) -> ();
    ibv_create_qp: fn(*mut Pd, *mut QpInitAttr) -> *mut Qp;
    ibv_modify_qp: fn(*mut Qp, *mut QpAttr, c_int) -> c_int;
    ibv_query_qp: fn(*mut Qp, *mut QpAttr, c_int, *mut QpInitAttr) -> c_int;
    ibv_destroy_qp: fn(*mut Qp) -> c_int;
    ibv_get_async_event: fn(*mut Context, *mut AsyncEvent) -> c_int;
    ibv_ack_async_event: fn(*mut AsyncEvent) -> ();
}

pub(super) type PostSend = unsafe extern "C" fn(*mut Qp, *mut SendWr, *mut *mut SendWr) -> c_int;
pub(super) type PostRecv = unsafe extern "C" fn(*mut Qp, *mut RecvWr, *mut *mut RecvWr) -> c_int;
pub(super) type PollCq = unsafe extern "C" fn(*mut Cq, c_int, *mut Completion) -> c_int;
pub(super) type ReqNotifyCq = unsafe extern "C" fn(*mut Cq, c_int) -> c_int;

// --- what the library makes: heads only ---

/// `struct ibv_device`; only its address is used.
#[repr(C)]
pub(super) struct Device {
    _ops: [*const c_void; 2],
}

/// The function pointers of `struct ibv_context_ops`; those that we do not call are untyped.
#[repr(C)]
pub(super) struct ContextOps {
    _until_poll: [*const c_void; 11],
    pub(super) poll_cq: Option<PollCq>,
    pub(super) req_notify_cq: Option<ReqNotifyCq>,
    _until_post: [*const c_void; 12],
    pub(super) post_send: Option<PostSend>,
    pub(super) post_recv: Option<PostRecv>,
    _rest: [*const c_void; 5],
}

/// The head of `struct ibv_context`.
#[repr(C)]
pub(super) struct Context {
    pub(super) device: *mut Device,
    pub(super) ops: ContextOps,
    pub(super) cmd_fd: c_int,
    pub(super) async_fd: c_int,
}

/// The head of `struct ibv_pd`.
#[repr(C)]
pub(super) struct Pd {
    _context: *mut Context,
}

/// `struct ibv_mr`.
#[repr(C)]
pub(super) struct Mr {
    _context: *mut Context,
    _pd: *mut Pd,
    pub(super) addr: *mut c_void,
    pub(super) length: usize,
    _handle: u32,
    pub(super) lkey: u32,
    pub(super) rkey: u32,
}

/// `struct ibv_comp_channel`.
#[repr(C)]
pub(super) struct CompChannel {
    _context: *mut Context,
    pub(super) fd: c_int,
    _refcnt: c_int,
}

/// The head of `struct ibv_cq`.
#[repr(C)]
pub(super) struct Cq {
    _context: *mut Context,
    _channel: *mut CompChannel,
    _cq_context: *mut c_void,
    _handle: u32,
    pub(super) cqe: c_int,
}

/// The head of `struct ibv_qp`.
#[repr(C)]
pub(super) struct Qp {
    _context: *mut Context,
    _qp_context: *mut c_void,
    _pd: *mut Pd,
    _send_cq: *mut Cq,
    _recv_cq: *mut Cq,
    _srq: *mut c_void,
    _handle: u32,
    pub(super) qp_num: u32,
}

// --- what we make ---

/// `struct ibv_device_attr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct DeviceAttr {
    _fw_ver: [u8; 64],
    _guids: [u64; 2],
    pub(super) max_mr_size: u64,
    _page_size_cap: u64,
    _vendor_id: u32,
    _vendor_part_id: u32,
    _hw_ver: u32,
    pub(super) max_qp: c_int,
    pub(super) max_qp_wr: c_int,
    _device_cap_flags: u32,
    pub(super) max_sge: c_int,
    pub(super) max_sge_rd: c_int,
    _max_cq: c_int,
    pub(super) max_cqe: c_int,
    pub(super) max_mr: c_int,
    _max_pd: c_int,
    pub(super) max_qp_rd_atom: c_int,
    _max_ee_rd_atom: c_int,
    _max_res_rd_atom: c_int,
    pub(super) max_qp_init_rd_atom: c_int,
    _max_ee_init_rd_atom: c_int,
    pub(super) atomic_cap: u32,
    _max_others: [c_int; 14],
    _max_pkeys: u16,
    _local_ca_ack_delay: u8,
    pub(super) phys_port_cnt: u8,
}

/// `struct ibv_port_attr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct PortAttr {
    pub(super) state: u32,
    _max_mtu: u32,
    pub(super) active_mtu: u32,
    pub(super) gid_tbl_len: c_int,
    _port_cap_flags: u32,
    pub(super) max_msg_sz: u32,
    _counters: [u32; 2],
    _pkey_tbl_len: u16,
    pub(super) lid: u16,
    _sm_lid: u16,
    _bytes: [u8; 8],
    pub(super) link_layer: u8,
    _flags: u8,
    _port_cap_flags2: u16,
    /// What the struct has grown by (4 bytes in rdma-core 55), and may.
    _later: [u32; 3],
}

/// `struct ibv_sge`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Sge {
    pub(super) addr: u64,
    pub(super) length: u32,
    pub(super) lkey: u32,
}

/// `wr` of `struct ibv_send_wr`; what WRITE and READ look at, or what atomics look at.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) union Remote {
    pub(super) rdma: RemoteRange,
    pub(super) atomic: RemoteWord,
}

/// `wr.rdma`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct RemoteRange {
    pub(super) remote_addr: u64,
    pub(super) rkey: u32,
}

/// `wr.atomic`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct RemoteWord {
    pub(super) remote_addr: u64,
    pub(super) compare_add: u64,
    pub(super) swap: u64,
    pub(super) rkey: u32,
}

/// `struct ibv_send_wr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct SendWr {
    pub(super) wr_id: u64,
    pub(super) next: *mut Self,
    pub(super) sg_list: *mut Sge,
    pub(super) num_sge: c_int,
    pub(super) opcode: u32,
    pub(super) send_flags: u32,
    pub(super) imm_data: u32,
    pub(super) wr: Remote,
    /// `qp_type` and the last union: for XRC, windows and segmentation, none of which we use.
    pub(super) unused: [u64; 7],
}

/// `struct ibv_recv_wr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct RecvWr {
    pub(super) wr_id: u64,
    pub(super) next: *mut Self,
    pub(super) sg_list: *mut Sge,
    pub(super) num_sge: c_int,
}

/// `struct ibv_wc`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Completion {
    pub(super) wr_id: u64,
    pub(super) status: u32,
    pub(super) opcode: u32,
    pub(super) vendor_err: u32,
    pub(super) byte_len: u32,
    _imm_data: u32,
    pub(super) qp_num: u32,
    _src_qp: u32,
    _wc_flags: u32,
    _pkey_index: u16,
    _slid: u16,
    _sl: u8,
    _dlid_path_bits: u8,
}

/// `struct ibv_qp_cap`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct QpCap {
    pub(super) max_send_wr: u32,
    pub(super) max_recv_wr: u32,
    pub(super) max_send_sge: u32,
    pub(super) max_recv_sge: u32,
    pub(super) max_inline_data: u32,
}

/// `struct ibv_qp_init_attr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct QpInitAttr {
    pub(super) qp_context: *mut c_void,
    pub(super) send_cq: *mut Cq,
    pub(super) recv_cq: *mut Cq,
    pub(super) srq: *mut c_void,
    pub(super) cap: QpCap,
    pub(super) qp_type: u32,
    pub(super) sq_sig_all: c_int,
}

/// `struct ibv_global_route`.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct GlobalRoute {
    pub(super) dgid: [u8; 16],
    pub(super) flow_label: u32,
    pub(super) sgid_index: u8,
    pub(super) hop_limit: u8,
    pub(super) traffic_class: u8,
}

/// `struct ibv_ah_attr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct AhAttr {
    pub(super) grh: GlobalRoute,
    pub(super) dlid: u16,
    pub(super) sl: u8,
    pub(super) src_path_bits: u8,
    pub(super) static_rate: u8,
    pub(super) is_global: u8,
    pub(super) port_num: u8,
}

/// `struct ibv_qp_attr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct QpAttr {
    pub(super) qp_state: u32,
    pub(super) cur_qp_state: u32,
    pub(super) path_mtu: u32,
    pub(super) path_mig_state: u32,
    pub(super) qkey: u32,
    pub(super) rq_psn: u32,
    pub(super) sq_psn: u32,
    pub(super) dest_qp_num: u32,
    pub(super) qp_access_flags: u32,
    pub(super) cap: QpCap,
    pub(super) ah_attr: AhAttr,
    pub(super) alt_ah_attr: AhAttr,
    pub(super) pkey_index: u16,
    pub(super) alt_pkey_index: u16,
    pub(super) en_sqd_async_notify: u8,
    pub(super) sq_draining: u8,
    pub(super) max_rd_atomic: u8,
    pub(super) max_dest_rd_atomic: u8,
    pub(super) min_rnr_timer: u8,
    pub(super) port_num: u8,
    pub(super) timeout: u8,
    pub(super) retry_cnt: u8,
    pub(super) rnr_retry: u8,
    pub(super) alt_port_num: u8,
    pub(super) alt_timeout: u8,
    pub(super) rate_limit: u32,
}

/// `struct ibv_async_event`; what it is about is told by its type.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct AsyncEvent {
    pub(super) element: Element,
    pub(super) event_type: u32,
}

/// `element` of `struct ibv_async_event`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) union Element {
    pub(super) qp: *mut Qp,
    pub(super) port_num: c_int,
}

/// Structs of which all zeroes are a value, as C programs begin them.
pub(super) trait Zeroed: Sized {
    /// A value of nothing but zeroes: numbers 0, pointers null, no functions.
    fn zeroed() -> Self {
        // SAFETY: implemented below for structs of integers, raw pointers and unions of those.
        unsafe { std::mem::zeroed() }
    }
}

impl Zeroed for DeviceAttr {}
impl Zeroed for PortAttr {}
impl Zeroed for SendWr {}
impl Zeroed for RecvWr {}
impl Zeroed for Sge {}
impl Zeroed for Completion {}
impl Zeroed for QpInitAttr {}
impl Zeroed for QpAttr {}
impl Zeroed for AsyncEvent {}

const _: () = {
    assert!(size_of::<ContextOps>() == 32 * 8);
    assert!(size_of::<Mr>() == 48);
    assert!(size_of::<DeviceAttr>() == 232);
    assert!(size_of::<PortAttr>() == 64);
    assert!(size_of::<SendWr>() == 128);
    assert!(size_of::<RecvWr>() == 32);
    assert!(size_of::<Completion>() == 48);
    assert!(size_of::<QpInitAttr>() == 64);
    assert!(size_of::<AhAttr>() == 32);
    assert!(size_of::<QpAttr>() == 144);
    assert!(size_of::<AsyncEvent>() == 16);
};

pub(super) const QPT_RC: u32 = 2;

pub(super) const QPS_RESET: u32 = 0;
pub(super) const QPS_INIT: u32 = 1;
pub(super) const QPS_RTR: u32 = 2;
pub(super) const QPS_RTS: u32 = 3;
pub(super) const QPS_ERR: u32 = 6;

pub(super) const QP_STATE: c_int = 1 << 0;
pub(super) const QP_ACCESS_FLAGS: c_int = 1 << 3;
pub(super) const QP_PKEY_INDEX: c_int = 1 << 4;
pub(super) const QP_PORT: c_int = 1 << 5;
pub(super) const QP_AV: c_int = 1 << 7;
pub(super) const QP_PATH_MTU: c_int = 1 << 8;
pub(super) const QP_TIMEOUT: c_int = 1 << 9;
pub(super) const QP_RETRY_CNT: c_int = 1 << 10;
pub(super) const QP_RNR_RETRY: c_int = 1 << 11;
pub(super) const QP_RQ_PSN: c_int = 1 << 12;
pub(super) const QP_MAX_QP_RD_ATOMIC: c_int = 1 << 13;
pub(super) const QP_MIN_RNR_TIMER: c_int = 1 << 15;
pub(super) const QP_SQ_PSN: c_int = 1 << 16;
pub(super) const QP_MAX_DEST_RD_ATOMIC: c_int = 1 << 17;
pub(super) const QP_DEST_QPN: c_int = 1 << 20;

pub(super) const WR_RDMA_WRITE: u32 = 0;
pub(super) const WR_SEND: u32 = 2;
pub(super) const WR_RDMA_READ: u32 = 4;
pub(super) const WR_ATOMIC_CMP_AND_SWP: u32 = 5;
pub(super) const WR_ATOMIC_FETCH_AND_ADD: u32 = 6;

pub(super) const SEND_FENCE: u32 = 1 << 0;
pub(super) const SEND_SIGNALED: u32 = 1 << 1;
pub(super) const SEND_INLINE: u32 = 1 << 3;

pub(super) const ACCESS_LOCAL_WRITE: u32 = 1 << 0;
pub(super) const ACCESS_REMOTE_WRITE: u32 = 1 << 1;
pub(super) const ACCESS_REMOTE_READ: u32 = 1 << 2;
pub(super) const ACCESS_REMOTE_ATOMIC: u32 = 1 << 3;

pub(super) const PORT_ACTIVE: u32 = 4;
pub(super) const LINK_LAYER_ETHERNET: u8 = 2;

pub(super) const EVENT_CQ_ERR: u32 = 0;
pub(super) const EVENT_QP_FATAL: u32 = 1;
pub(super) const EVENT_QP_REQ_ERR: u32 = 2;
pub(super) const EVENT_QP_ACCESS_ERR: u32 = 3;
pub(super) const EVENT_COMM_EST: u32 = 4;
pub(super) const EVENT_SQ_DRAINED: u32 = 5;
pub(super) const EVENT_DEVICE_FATAL: u32 = 8;
pub(super) const EVENT_PORT_ACTIVE: u32 = 9;
pub(super) const EVENT_PORT_ERR: u32 = 10;
pub(super) const EVENT_LID_CHANGE: u32 = 11;
pub(super) const EVENT_QP_LAST_WQE_REACHED: u32 = 16;
pub(super) const EVENT_GID_CHANGE: u32 = 18;

/// What a function that does nothing returns.
#[cfg(test)]
trait Nothing {
    const NOTHING: Self;
}

#[cfg(test)]
impl Nothing for c_int {
    const NOTHING: Self = -1;
}

#[cfg(test)]
impl Nothing for () {
    const NOTHING: Self = ();
}

#[cfg(test)]
impl<T> Nothing for *mut T {
    const NOTHING: Self = std::ptr::null_mut();
}

#[cfg(test)]
impl<T> Nothing for *const T {
    const NOTHING: Self = std::ptr::null();
}

/// For devices that do nothing.
#[cfg(test)]
mod zeroed {
    use super::*;

    impl Zeroed for Context {}
    impl Zeroed for Pd {}
    impl Zeroed for Mr {}
    impl Zeroed for CompChannel {}
    impl Zeroed for Cq {}
    impl Zeroed for Qp {}
}
