//! Everything that the library makes, as owned values: a device with its queues, queue pairs, and
//! registered memory. The one place that calls the library's exported functions.
//!
//! **Invariants**: what was made on a device holds the device; so nothing is freed before what
//! stands on it, whichever end of the program lets go first. libibverbs locks what threads share,
//! so all of it may be used from any thread; what is not safe there, destroying under another's
//! feet, ownership excludes.
#![expect(unsafe_code, reason = "calls a C library and follows its pointers")]

use std::ffi::{CStr, c_int};
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{AccessFlags, access};

use super::error::VerbsError;
use super::provider::Keys;
use super::sys::{self, Table, Zeroed};
use crate::fabric::qp::provider::{Access, Caps};
use crate::shm::Mapping;

/// Returns the library's functions, loading it at the first call that succeeds.
///
/// # Errors
/// [`VerbsError::NoLibrary`], [`VerbsError::NoSymbol`].
pub(super) fn table() -> Result<&'static Table, VerbsError> {
    static TABLE: OnceLock<Table> = OnceLock::new();
    if let Some(table) = TABLE.get() {
        return Ok(table);
    }
    let made = load()?;
    Ok(TABLE.get_or_init(|| made))
}

#[cfg(feature = "ibverbs")]
#[expect(clippy::unnecessary_wraps, reason = "the signature is that of the other way")]
fn load() -> Result<Table, VerbsError> {
    Ok(super::bindings::table())
}

#[cfg(not(feature = "ibverbs"))]
fn load() -> Result<Table, VerbsError> {
    // SAFETY: libibverbs' constructor only prepares its own lists, and may run on any thread.
    let library = unsafe { libloading::Library::new("libibverbs.so.1") };
    let library = library.map_err(|source| VerbsError::NoLibrary { source })?;
    Table::load(Box::leak(Box::new(library))).map_err(|symbol| VerbsError::NoSymbol { symbol })
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Bytes that may be locked.
pub(super) fn locked_max() -> u64 {
    getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft)
}

/// Why a device was not opened. The library tries several ways, and its errno is that of the last:
/// what it was about, the device file tells.
fn not_opened(name: String, errno: i32) -> VerbsError {
    let Some(node) = node(&name) else {
        return VerbsError::Os { name, call: "ibv_open_device", errno };
    };
    match access(&node, AccessFlags::R_OK | AccessFlags::W_OK) {
        Err(Errno::EACCES | Errno::EPERM) => VerbsError::NoRights { name, node },
        Err(Errno::ENOENT) => VerbsError::NoNode { name, node },
        _ => VerbsError::Os { name, call: "ibv_open_device", errno },
    }
}

/// The file by which the kernel gives a device to programs.
fn node(name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir("/sys/class/infiniband_verbs").ok()?;
    let found = entries.flatten().find(|entry| {
        let of = fs::read_to_string(entry.path().join("ibdev"));
        of.is_ok_and(|of| of.trim() == name)
    })?;
    Some(Path::new("/dev/infiniband").join(found.file_name()))
}

/// Devices, as long as the list lives.
struct DeviceList {
    table: &'static Table,
    list: NonNull<*mut sys::Device>,
    count: usize,
}

impl DeviceList {
    fn read() -> Result<Self, VerbsError> {
        let table = table()?;
        let mut count: c_int = 0;
        // SAFETY: `count` lives through the call.
        let list = unsafe { (table.ibv_get_device_list)(&raw mut count) };
        let Some(list) = NonNull::new(list) else {
            return Err(VerbsError::NoKernel { errno: errno() });
        };
        Ok(Self { table, list, count: usize::try_from(count).unwrap_or(0) })
    }

    fn devices(&self) -> impl Iterator<Item = (String, *mut sys::Device)> {
        (0..self.count).map(|index| {
            let at = self.list.as_ptr().wrapping_add(index);
            // SAFETY: the library has put `count` pointers there, freed when `self` is dropped.
            let device = unsafe { at.read() };
            // SAFETY: a device of a list that has not been freed.
            let name = unsafe { (self.table.ibv_get_device_name)(device) };
            // SAFETY: the name is a string inside the device, which the list keeps.
            let name = unsafe { CStr::from_ptr(name) };
            (name.to_string_lossy().into_owned(), device)
        })
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        // SAFETY: the library made the list, and open devices hold references of their own.
        unsafe { (self.table.ibv_free_device_list)(self.list.as_ptr()) }
    }
}

/// Names of all devices that libibverbs can open.
///
/// # Errors
/// [`VerbsError::NoLibrary`], [`VerbsError::NoSymbol`], [`VerbsError::NoKernel`].
pub fn device_names() -> Result<Vec<String>, VerbsError> {
    #[cfg(feature = "ibverbs")]
    return super::bindings::device_names();
    #[cfg(not(feature = "ibverbs"))]
    Ok(DeviceList::read()?.devices().map(|(name, _)| name).collect())
}

/// An open device.
pub(super) struct Device {
    pub(super) table: &'static Table,
    pub(super) name: String,
    context: NonNull<sys::Context>,
}

// SAFETY: libibverbs is thread-safe (ibv_open_device(3)); a context belongs to no thread.
unsafe impl Send for Device {}
// SAFETY: as for Send; the fields never change.
unsafe impl Sync for Device {}

impl Device {
    pub(super) fn open(name: &str) -> Result<Self, VerbsError> {
        let list = DeviceList::read()?;
        let Some((name, device)) = list.devices().find(|(other, _)| other == name) else {
            // The library passes over devices whose file is missing.
            if let Some(node) = node(name).filter(|node| !node.exists()) {
                return Err(VerbsError::NoNode { name: name.to_string(), node });
            }
            let have: Vec<_> = list.devices().map(|(name, _)| name).collect();
            if have.is_empty() {
                return Err(VerbsError::NoDevice);
            }
            return Err(VerbsError::NotFound { name: name.to_string(), have: have.join(", ") });
        };
        // SAFETY: a device of a list that has not been freed yet.
        let context = unsafe { (list.table.ibv_open_device)(device) };
        let Some(context) = NonNull::new(context) else {
            let errno = errno();
            return Err(not_opened(name, errno));
        };
        let device = Self { table: list.table, name, context };
        device.never_block(device.async_fd())?;
        Ok(device)
    }

    /// An error of a call that makes something.
    pub(super) fn failed(&self, call: &'static str, errno: i32) -> VerbsError {
        let name = self.name.clone();
        if errno == Errno::ENOMEM as i32 {
            return VerbsError::LockedMemory { name, call, limit_bytes: locked_max() };
        }
        VerbsError::Os { name, call, errno }
    }

    pub(super) fn attr(&self) -> Result<sys::DeviceAttr, VerbsError> {
        let mut attr = sys::DeviceAttr::zeroed();
        // SAFETY: the context is open, and `attr` is a whole ibv_device_attr.
        let error = unsafe { (self.table.ibv_query_device)(self.context.as_ptr(), &raw mut attr) };
        if error == 0 { Ok(attr) } else { Err(self.failed("ibv_query_device", error)) }
    }

    pub(super) fn port(&self, port: u8) -> Result<sys::PortAttr, VerbsError> {
        let mut attr = sys::PortAttr::zeroed();
        // SAFETY: as above; the exported function writes a prefix of ibv_port_attr.
        let error =
            unsafe { (self.table.ibv_query_port)(self.context.as_ptr(), port, &raw mut attr) };
        if error == 0 { Ok(attr) } else { Err(self.failed("ibv_query_port", error)) }
    }

    /// A GID; all zeroes where the table has none.
    pub(super) fn gid(&self, port: u8, index: u8) -> Result<[u8; 16], i32> {
        let mut gid = [0; 16];
        // SAFETY: as above; a GID is 16 bytes.
        let error = unsafe {
            (self.table.ibv_query_gid)(self.context.as_ptr(), port, index.into(), &raw mut gid)
        };
        if error == 0 { Ok(gid) } else { Err(errno()) }
    }

    fn async_fd(&self) -> RawFd {
        // SAFETY: the context is open, and its descriptor never changes.
        unsafe { (*self.context.as_ptr()).async_fd }
    }

    /// The descriptor that becomes readable when the device has something to say.
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        // SAFETY: the context keeps it open as long as `self` lives.
        unsafe { BorrowedFd::borrow_raw(self.async_fd()) }
    }

    /// The next event, acknowledged; its queue pair, if it is about one, as its number.
    pub(super) fn next_event(&self) -> Option<(u32, u32)> {
        let mut event = sys::AsyncEvent::zeroed();
        // SAFETY: the context is open; its descriptor does not block, so neither does the call.
        let got =
            unsafe { (self.table.ibv_get_async_event)(self.context.as_ptr(), &raw mut event) };
        if got != 0 {
            return None;
        }
        let about_pair = [
            sys::EVENT_QP_FATAL,
            sys::EVENT_QP_REQ_ERR,
            sys::EVENT_QP_ACCESS_ERR,
            sys::EVENT_COMM_EST,
            sys::EVENT_SQ_DRAINED,
            sys::EVENT_QP_LAST_WQE_REACHED,
        ];
        let number = if about_pair.contains(&event.event_type) {
            // SAFETY: these types fill `element.qp`.
            let pair = unsafe { event.element.qp };
            // SAFETY: ibv_destroy_qp waits for its events to be acknowledged: it is still there.
            unsafe { (*pair).qp_num }
        } else if event.event_type == sys::EVENT_CQ_ERR {
            0
        } else {
            // SAFETY: the other types that are reported fill `element.port_num`, or nothing, which
            // is all zeroes; any bits are an integer.
            u32::try_from(unsafe { event.element.port_num }).unwrap_or(0)
        };
        // SAFETY: the event that was just got, once.
        unsafe { (self.table.ibv_ack_async_event)(&raw mut event) };
        Some((event.event_type, number))
    }

    fn never_block(&self, fd: RawFd) -> Result<(), VerbsError> {
        // SAFETY: a descriptor of the library's, open as long as what it belongs to.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let failed = |errno: Errno| self.failed("fcntl", errno as i32);
        let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(failed)?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(fd, FcntlArg::F_SETFL(flags)).map_err(failed)?;
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: everything made on the context holds the device, so it is gone by now.
        unsafe { (self.table.ibv_close_device)(self.context.as_ptr()) };
    }
}

/// A device with a protection domain, one completion queue, and the channel for its events.
pub(super) struct Queues {
    pub(super) device: Device,
    /// What may be copied inline: registration keeps it.
    pub(super) keys: Keys,
    pd: NonNull<sys::Pd>,
    channel: NonNull<sys::CompChannel>,
    pub(super) cq: NonNull<sys::Cq>,
    pub(super) poll_cq: sys::PollCq,
    pub(super) req_notify_cq: sys::ReqNotifyCq,
    pub(super) post_send: sys::PostSend,
    pub(super) post_recv: sys::PostRecv,
}

// SAFETY: as for Device.
unsafe impl Send for Queues {}
// SAFETY: as for Device.
unsafe impl Sync for Queues {}

impl Queues {
    pub(super) fn make(device: Device, entries: u32) -> Result<Self, VerbsError> {
        let (table, context) = (device.table, device.context);
        let whole = || {
            // SAFETY: the context is open and its functions never change.
            let ops = unsafe { &raw const (*context.as_ptr()).ops };
            // SAFETY: as above; this copies one pointer.
            let poll = unsafe { (*ops).poll_cq }?;
            // SAFETY: as above.
            let notify = unsafe { (*ops).req_notify_cq }?;
            // SAFETY: as above.
            let send = unsafe { (*ops).post_send }?;
            // SAFETY: as above.
            let recv = unsafe { (*ops).post_recv }?;
            Some((poll, notify, send, recv))
        };
        let (poll_cq, req_notify_cq, post_send, post_recv) =
            whole().ok_or_else(|| device.failed("a look at its functions", 0))?;
        // SAFETY: the context is open.
        let pd = NonNull::new(unsafe { (table.ibv_alloc_pd)(context.as_ptr()) })
            .ok_or_else(|| device.failed("ibv_alloc_pd", errno()))?;
        // SAFETY: the context is open.
        let channel = unsafe { (table.ibv_create_comp_channel)(context.as_ptr()) };
        let Some(channel) = NonNull::new(channel) else {
            let error = device.failed("ibv_create_comp_channel", errno());
            // SAFETY: nothing stands on it yet.
            unsafe { (table.ibv_dealloc_pd)(pd.as_ptr()) };
            return Err(error);
        };
        let entries = c_int::try_from(entries).unwrap_or(c_int::MAX);
        let own = ptr::null_mut();
        // SAFETY: context and channel are open, of one device.
        let cq =
            unsafe { (table.ibv_create_cq)(context.as_ptr(), entries, own, channel.as_ptr(), 0) };
        let Some(cq) = NonNull::new(cq) else {
            let error = device.failed("ibv_create_cq", errno());
            // SAFETY: nothing stands on it yet.
            unsafe { (table.ibv_destroy_comp_channel)(channel.as_ptr()) };
            // SAFETY: nothing stands on it yet.
            unsafe { (table.ibv_dealloc_pd)(pd.as_ptr()) };
            return Err(error);
        };
        let keys = Keys::default();
        let made =
            Self { device, keys, pd, channel, cq, poll_cq, req_notify_cq, post_send, post_recv };
        made.device.never_block(made.channel_fd())?;
        Ok(made)
    }

    /// Entries that the completion queue really has.
    pub(super) fn entries(&self) -> u32 {
        // SAFETY: the queue lives as long as `self`, and is never resized.
        u32::try_from(unsafe { (*self.cq.as_ptr()).cqe }).unwrap_or(0)
    }

    fn channel_fd(&self) -> RawFd {
        // SAFETY: the channel lives as long as `self`, and its descriptor never changes.
        unsafe { (*self.channel.as_ptr()).fd }
    }

    /// The descriptor that becomes readable by the event that was asked for.
    pub(super) fn channel(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel keeps it open as long as `self` lives.
        unsafe { BorrowedFd::borrow_raw(self.channel_fd()) }
    }

    /// Takes one event off the channel; false if there is none.
    pub(super) fn take_event(&self) -> bool {
        let mut cq = ptr::null_mut();
        let mut own = ptr::null_mut();
        // SAFETY: the channel lives; its descriptor does not block, so neither does the call.
        let got = unsafe {
            (self.device.table.ibv_get_cq_event)(self.channel.as_ptr(), &raw mut cq, &raw mut own)
        };
        if got != 0 {
            return false;
        }
        // SAFETY: one event of this queue was just got. Unacknowledged ones would make its
        // destruction wait for ever.
        unsafe { (self.device.table.ibv_ack_cq_events)(cq, 1) };
        true
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        let table = self.device.table;
        // SAFETY: queue pairs hold `self`, so none uses it; every event was acknowledged.
        unsafe { (table.ibv_destroy_cq)(self.cq.as_ptr()) };
        // SAFETY: its only queue is gone.
        unsafe { (table.ibv_destroy_comp_channel)(self.channel.as_ptr()) };
        // SAFETY: queue pairs and registrations hold `self`, so none is left.
        unsafe { (table.ibv_dealloc_pd)(self.pd.as_ptr()) };
    }
}

/// A queue pair.
pub(super) struct QueuePair {
    pub(super) queues: Arc<Queues>,
    pub(super) raw: NonNull<sys::Qp>,
    ended: bool,
}

// SAFETY: as for Device.
unsafe impl Send for QueuePair {}
// SAFETY: as for Device.
unsafe impl Sync for QueuePair {}

impl QueuePair {
    /// Makes a reliable connection in RESET, or says with which errno the device refuses these
    /// sizes. What is returned is at most what was asked for.
    pub(super) fn make(queues: &Arc<Queues>, ask: Caps) -> Result<(Self, Caps), i32> {
        let mut attr = sys::QpInitAttr {
            send_cq: queues.cq.as_ptr(),
            recv_cq: queues.cq.as_ptr(),
            cap: sys::QpCap {
                max_send_wr: ask.sends,
                max_recv_wr: ask.receives,
                max_send_sge: ask.ranges,
                max_recv_sge: 1,
                max_inline_data: ask.inline_bytes,
            },
            qp_type: sys::QPT_RC,
            ..sys::QpInitAttr::zeroed()
        };
        // SAFETY: domain and queue are of one device and live as long as `queues`.
        let raw = unsafe { (queues.device.table.ibv_create_qp)(queues.pd.as_ptr(), &raw mut attr) };
        let raw = NonNull::new(raw).ok_or_else(errno)?;
        let caps = Caps {
            sends: attr.cap.max_send_wr.min(ask.sends),
            receives: attr.cap.max_recv_wr.min(ask.receives),
            inline_bytes: attr.cap.max_inline_data.min(ask.inline_bytes),
            ranges: attr.cap.max_send_sge.min(ask.ranges),
        };
        Ok((Self { queues: queues.clone(), raw, ended: false }, caps))
    }

    pub(super) fn number(&self) -> u32 {
        // SAFETY: the queue pair lives, and its number never changes.
        unsafe { (*self.raw.as_ptr()).qp_num }
    }

    pub(super) fn modify(&self, mut attr: sys::QpAttr, mask: c_int) -> Result<(), i32> {
        let table = self.queues.device.table;
        // SAFETY: the queue pair lives, and `attr` is a whole ibv_qp_attr.
        let error = unsafe { (table.ibv_modify_qp)(self.raw.as_ptr(), &raw mut attr, mask) };
        if error == 0 { Ok(()) } else { Err(error) }
    }

    pub(super) fn query(&self, mask: c_int) -> Result<sys::QpAttr, i32> {
        let table = self.queues.device.table;
        let mut attr = sys::QpAttr::zeroed();
        let mut init = sys::QpInitAttr::zeroed();
        // SAFETY: the queue pair lives, and both structs are whole.
        let error =
            unsafe { (table.ibv_query_qp)(self.raw.as_ptr(), &raw mut attr, mask, &raw mut init) };
        if error == 0 { Ok(attr) } else { Err(error) }
    }

    /// Ends it, and tells if the device refused; then it is leaked.
    pub(super) fn end(mut self) -> Result<(), i32> {
        let error = self.destroy();
        if error == 0 { Ok(()) } else { Err(error) }
    }

    fn destroy(&mut self) -> c_int {
        self.ended = true;
        // SAFETY: the only call: `ended` is looked at before another. Nobody posts any more, as
        // whoever posts holds a reference.
        unsafe { (self.queues.device.table.ibv_destroy_qp)(self.raw.as_ptr()) }
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        if !self.ended {
            self.destroy();
        }
    }
}

/// A piece of a mapping that the device may use.
pub(super) struct Registered {
    queues: Arc<Queues>,
    raw: NonNull<sys::Mr>,
    /// Kept mapped until the device can no longer reach it.
    memory: Option<Arc<Mapping>>,
}

// SAFETY: as for Device.
unsafe impl Send for Registered {}

impl Registered {
    /// Registers a part of a mapping.
    ///
    /// # Panics
    /// If the part does not lie inside.
    pub(super) fn make(
        queues: &Arc<Queues>,
        memory: &Arc<Mapping>,
        offset: u64,
        bytes: u64,
        access: Access,
    ) -> Result<Self, i32> {
        assert!(memory.holds(offset, bytes), "a part outside its mapping");
        let mut flags = sys::ACCESS_LOCAL_WRITE;
        for (admitted, flag) in [
            (access.write, sys::ACCESS_REMOTE_WRITE),
            (access.read, sys::ACCESS_REMOTE_READ),
            (access.atomics, sys::ACCESS_REMOTE_ATOMIC),
        ] {
            flags |= if admitted { flag } else { 0 };
        }
        let flags = c_int::try_from(flags).unwrap_or(0);
        let (Ok(offset), Ok(bytes)) = (usize::try_from(offset), usize::try_from(bytes)) else {
            return Err(Errno::EOVERFLOW as i32);
        };
        let base = memory.base().as_ptr().wrapping_add(offset).cast();
        // SAFETY: the part lies inside the mapping, as asserted, and stays mapped until it is
        // deregistered, since `memory` is kept. That the device writes there at any time is what
        // mappings are for: nothing refers to their bytes.
        let raw =
            unsafe { (queues.device.table.ibv_reg_mr)(queues.pd.as_ptr(), base, bytes, flags) };
        let raw = NonNull::new(raw).ok_or_else(errno)?;
        Ok(Self { queues: queues.clone(), raw, memory: Some(memory.clone()) })
    }

    pub(super) fn lkey(&self) -> u32 {
        // SAFETY: the registration lives, and its keys never change.
        unsafe { (*self.raw.as_ptr()).lkey }
    }

    pub(super) fn rkey(&self) -> u32 {
        // SAFETY: the registration lives, and its keys never change.
        unsafe { (*self.raw.as_ptr()).rkey }
    }

    /// Withdraws it; on refusal it is given back, as the device may still reach the memory.
    pub(super) fn end(mut self) -> Result<(), (i32, Self)> {
        let error = self.withdraw();
        if error == 0 { Ok(()) } else { Err((error, self)) }
    }

    fn withdraw(&mut self) -> c_int {
        if self.memory.is_none() {
            return 0;
        }
        // SAFETY: the only call that succeeds: `memory` is empty from then on.
        let error = unsafe { (self.queues.device.table.ibv_dereg_mr)(self.raw.as_ptr()) };
        if error == 0 {
            self.memory = None;
        }
        error
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if self.withdraw() != 0 {
            // Memory that a device may still write to must never be used for anything else.
            std::mem::forget(self.memory.take());
        }
    }
}

/// Devices that do nothing, for tests of what stands on one: nothing in them leads anywhere.
#[cfg(test)]
mod hollow {
    use super::*;

    fn some<T: Zeroed>(change: impl FnOnce(&mut T)) -> NonNull<T> {
        let made = Box::leak(Box::new(T::zeroed()));
        change(made);
        NonNull::from(made)
    }

    impl Queues {
        pub(in crate::fabric::verbs) fn hollow(name: &str, entries: c_int) -> Arc<Self> {
            extern "C" fn poll_cq(_: *mut sys::Cq, _: c_int, _: *mut sys::Completion) -> c_int {
                0
            }
            extern "C" fn req_notify_cq(_: *mut sys::Cq, _: c_int) -> c_int {
                0
            }
            extern "C" fn post_send(
                _: *mut sys::Qp,
                _: *mut sys::SendWr,
                _: *mut *mut sys::SendWr,
            ) -> c_int {
                0
            }
            extern "C" fn post_recv(
                _: *mut sys::Qp,
                _: *mut sys::RecvWr,
                _: *mut *mut sys::RecvWr,
            ) -> c_int {
                0
            }
            let table = Box::leak(Box::new(Table::hollow()));
            let device = Device { table, name: name.to_string(), context: some(|_| {}) };
            Arc::new(Self {
                device,
                keys: Keys::default(),
                pd: some(|_| {}),
                channel: some(|_| {}),
                cq: some(|cq: &mut sys::Cq| cq.cqe = entries),
                poll_cq,
                req_notify_cq,
                post_send,
                post_recv,
            })
        }
    }

    impl QueuePair {
        pub(in crate::fabric::verbs) fn hollow(queues: &Arc<Queues>, number: u32) -> Self {
            let raw = some(|pair: &mut sys::Qp| pair.qp_num = number);
            Self { queues: queues.clone(), raw, ended: true }
        }
    }

    impl Registered {
        pub(in crate::fabric::verbs) fn hollow(queues: &Arc<Queues>) -> Self {
            Self { queues: queues.clone(), raw: some(|_| {}), memory: None }
        }
    }
}
