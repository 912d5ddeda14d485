//! Memory shared with other processes: made, sealed, mapped, and touched.
//!
//! A region may be changed by anyone it is shared with at any time, so no reference into it is
//! ever made, except to atomics. Payload moves through [`Mapping::copy`] and its two siblings,
//! which use raw pointers; a race with another process may tear the bytes, and nothing else: no
//! byte of payload is ever interpreted by us.
//!
//! **Invariants**: a mapping stays mapped as long as its [`Mapping`] lives, and its memfd cannot
//! shrink (sealed before it is mapped), so no access can raise SIGBUS for want of a page behind it.
//! Hole punching, which seals do not forbid by themselves, is refused by FUTURE_WRITE.
#![expect(unsafe_code, reason = "maps memory and copies payload through raw pointers")]

use std::ffi::CStr;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;
use thiserror::Error;

/// Bytes of a page; sizes of regions from memfds are multiples of it.
pub const PAGE_BYTES: u64 = 4096;

/// Why memory could not be made or accepted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ShmError {
    /// A system call failed.
    #[error("{call} failed")]
    Os {
        /// The call.
        call: &'static str,
        /// Its error.
        source: Errno,
    },
    /// The descriptor is not a memfd that can be sealed.
    #[error("the descriptor is not a sealable memfd: make it with memfd_create(MFD_ALLOW_SEALING)")]
    NotMemfd,
    /// Seals are missing.
    #[error("seals {have:#x} lack {lack:#x}: add F_SEAL_SHRINK and F_SEAL_GROW before sending it")]
    Seals {
        /// Seals found.
        have: i32,
        /// Seals that must be there and are not.
        lack: i32,
    },
    /// Seals that forbid what we need.
    #[error("seals {have:#x} forbid writing or further sealing: send a memfd without them")]
    Sealed {
        /// Seals found.
        have: i32,
    },
    /// The file is smaller than was said, or of a size that cannot be mapped.
    #[error(
        "the file has {have} bytes and {want} were asked for: it must be at least that, above 0"
    )]
    Size {
        /// Bytes found.
        have: u64,
        /// Bytes wanted.
        want: u64,
    },
    /// The descriptor cannot be written, or would append.
    #[error("the descriptor is not open for reading and writing (without O_APPEND)")]
    Access,
}

fn os(call: &'static str) -> impl FnOnce(Errno) -> ShmError {
    move |source| ShmError::Os { call, source }
}

/// Shared memory, mapped for reading and writing for as long as this lives.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    bytes: u64,
    mapped: usize,
}

// SAFETY: the mapping belongs to no thread, and every access through `&Mapping` is atomic or a raw
// copy whose races are with memory that other processes may change anyway.
unsafe impl Send for Mapping {}
// SAFETY: as for Send; no method hands out a reference to anything but an atomic.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` of a memfd that can no longer shrink.
    ///
    /// # Errors
    /// [`ShmError::Size`] for 0 bytes, [`ShmError::Os`] if the system refuses.
    pub fn shared(fd: BorrowedFd<'_>, bytes: u64) -> Result<Self, ShmError> {
        Self::mapped(fd, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    fn mapped(fd: BorrowedFd<'_>, bytes: u64, protection: ProtFlags) -> Result<Self, ShmError> {
        let length = Self::length(bytes)?;
        // SAFETY: a fresh mapping at an address the kernel chooses aliases no Rust object.
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, fd, 0) }
            .map_err(os("mmap"))?;
        Ok(Self { base: base.cast(), bytes, mapped: length.get() })
    }

    /// Maps private zeroed memory: a region that no other process sees, for tests and benches.
    ///
    /// # Errors
    /// As [`Mapping::shared`].
    pub fn anonymous(bytes: u64) -> Result<Self, ShmError> {
        let length = Self::length(bytes)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address the kernel chooses aliases no Rust object.
        let base = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }
            .map_err(os("mmap"))?;
        Ok(Self { base: base.cast(), bytes, mapped: length.get() })
    }

    fn length(bytes: u64) -> Result<NonZeroUsize, ShmError> {
        usize::try_from(bytes)
            .ok()
            .and_then(NonZeroUsize::new)
            .ok_or(ShmError::Size { have: 0, want: bytes })
    }

    /// Makes every page present now, so that no later access has to wait for one.
    ///
    /// # Errors
    /// [`ShmError::Os`], for example when the memory is not to be had.
    pub fn populate(&self) -> Result<(), ShmError> {
        // MADV_POPULATE_WRITE (Linux 5.14) reports failure where MAP_POPULATE stays silent.
        // SAFETY: base..base+mapped is this mapping, and populating changes no byte of it.
        let done =
            unsafe { madvise(self.base.cast(), self.mapped, MmapAdvise::MADV_POPULATE_WRITE) };
        match done {
            Ok(()) | Err(Errno::EINVAL) => Ok(()),
            Err(source) => Err(ShmError::Os { call: "madvise(MADV_POPULATE_WRITE)", source }),
        }
    }

    /// Bytes that may be touched.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// True if `offset..offset + length` lies inside.
    #[must_use]
    #[inline]
    pub fn holds(&self, offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.bytes)
    }

    /// Copies payload from one mapping to another; overlap within one is handled as by memmove.
    ///
    /// # Panics
    /// If either range does not lie inside its mapping: callers have validated both.
    #[inline]
    pub fn copy(from: &Self, from_offset: u64, to: &Self, to_offset: u64, length: u64) {
        let source = from.range(from_offset, length);
        let target = to.range(to_offset, length);
        // SAFETY: both ranges were just checked to lie inside live mappings; `copy` permits
        // overlap; the bytes are never interpreted, so a racing writer can only tear them.
        unsafe { std::ptr::copy(source.as_ptr(), target.as_ptr(), to_usize(length)) }
    }

    /// Copies bytes of ours into the mapping.
    ///
    /// # Panics
    /// If the range does not lie inside.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        let target = self.range(offset, bytes.len() as u64);
        // SAFETY: the target lies inside this live mapping, and `bytes`, being a Rust slice, does
        // not overlap memory that only raw pointers reach.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target.as_ptr(), bytes.len()) }
    }

    /// Copies bytes out of the mapping.
    ///
    /// # Panics
    /// If the range does not lie inside.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        let source = self.range(offset, bytes.len() as u64);
        // SAFETY: the source lies inside this live mapping, and `bytes` cannot overlap it; the
        // values are plain bytes, valid whatever a racing writer makes of them.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Fills a range with one byte.
    ///
    /// # Panics
    /// If the range does not lie inside.
    pub fn fill(&self, offset: u64, length: u64, byte: u8) {
        let target = self.range(offset, length);
        // SAFETY: the range lies inside this live mapping, which only raw pointers reach.
        unsafe { std::ptr::write_bytes(target.as_ptr(), byte, to_usize(length)) }
    }

    /// Returns the shared word at `offset`.
    ///
    /// # Panics
    /// If it does not lie inside or is not aligned to 4.
    #[must_use]
    #[inline]
    pub fn word32(&self, offset: u64) -> &AtomicU32 {
        let at = self.range(offset, 4);
        assert!(offset.is_multiple_of(4), "a shared u32 at an odd place");
        // SAFETY: inside this mapping, which outlives the reference; aligned, as the base is to a
        // page; atomics may be shared with whoever else maps the page.
        unsafe { AtomicU32::from_ptr(at.as_ptr().cast()) }
    }

    /// Returns the shared word at `offset`.
    ///
    /// # Panics
    /// If it does not lie inside or is not aligned to 8.
    #[must_use]
    #[inline]
    pub fn word64(&self, offset: u64) -> &AtomicU64 {
        let at = self.range(offset, 8);
        assert!(offset.is_multiple_of(8), "a shared u64 at an odd place");
        // SAFETY: inside this mapping, which outlives the reference; aligned, as the base is to a
        // page; atomics may be shared with whoever else maps the page.
        unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) }
    }

    /// Returns the eight words at `offset`: a cache line.
    ///
    /// # Panics
    /// If they do not lie inside or are not aligned to 8.
    #[must_use]
    #[inline]
    pub fn line(&self, offset: u64) -> &[AtomicU64; 8] {
        let at = self.range(offset, 64);
        assert!(offset.is_multiple_of(8), "shared words at an odd place");
        // SAFETY: inside this mapping, which outlives the reference; aligned, as the base is to a
        // page; atomics may be shared with whoever else maps the page.
        unsafe { at.cast::<[AtomicU64; 8]>().as_ref() }
    }

    #[inline]
    fn range(&self, offset: u64, length: u64) -> NonNull<u8> {
        assert!(self.holds(offset, length), "a range outside its mapping");
        // SAFETY: `holds` has shown offset <= bytes, so the pointer stays inside the mapping.
        unsafe { self.base.add(to_usize(offset)) }
    }

    /// Returns the address of the first byte, for code that cannot go through this type: the
    /// ring's slots, and memory registration.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made at construction; all borrows of it ended with `self`.
        let unmapped = unsafe { munmap(self.base.cast(), self.mapped) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Shared memory that is mapped for reading alone.
#[derive(Debug)]
pub struct View {
    mapping: Mapping,
}

impl View {
    /// Maps a memfd of a stranger's, whole, if it can no longer shrink.
    ///
    /// # Errors
    /// [`ShmError`] says what is wrong with it.
    pub fn open(fd: BorrowedFd<'_>) -> Result<Self, ShmError> {
        let have = seals(fd)?;
        let must = SealFlag::F_SEAL_SHRINK;
        if !have.contains(must) {
            return Err(ShmError::Seals { have: have.bits(), lack: must.bits() });
        }
        let stat = fstat(fd).map_err(os("fstat"))?;
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        Ok(Self { mapping: Mapping::mapped(fd, bytes, ProtFlags::PROT_READ)? })
    }

    /// Bytes that may be read.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.mapping.bytes()
    }

    /// Copies bytes out of it.
    ///
    /// # Panics
    /// If the range does not lie inside.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        self.mapping.read(offset, bytes);
    }

    /// Returns the eight words at `offset`, to be loaded and never stored to: that would end this
    /// process.
    ///
    /// # Panics
    /// If they do not lie inside or are not aligned to 8.
    #[must_use]
    pub fn line(&self, offset: u64) -> &[AtomicU64; 8] {
        self.mapping.line(offset)
    }
}

/// Lossless on the 64-bit hosts that `abi` insists on.
#[inline]
fn to_usize(value: u64) -> usize {
    const _: () = assert!(usize::BITS == 64);
    #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, asserted above")]
    {
        value as usize
    }
}

/// Makes a memfd that can neither shrink nor grow. `huge` asks for huge pages.
///
/// # Errors
/// [`ShmError::Os`]; with `huge` also when the machine has no huge page to spare.
pub fn create(name: &CStr, bytes: u64, huge: bool) -> Result<OwnedFd, ShmError> {
    let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    if huge {
        flags |= MFdFlags::MFD_HUGETLB;
    }
    let fd = memfd_create(name, flags).map_err(os("memfd_create"))?;
    let length = i64::try_from(bytes).map_err(|_| ShmError::Size { have: 0, want: bytes })?;
    ftruncate(&fd, length).map_err(os("ftruncate"))?;
    add_seals(fd.as_fd(), SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW)?;
    Ok(fd)
}

/// Adds FUTURE_WRITE and SEAL and looks whether all four seals hold: both sides have mapped the
/// memory, and from here on nobody can map it for writing anew, punch holes into it or resize it.
///
/// # Errors
/// [`ShmError`] if a seal cannot be had.
pub fn seal_for_good(fd: BorrowedFd<'_>) -> Result<(), ShmError> {
    add_seals(fd, SealFlag::F_SEAL_FUTURE_WRITE)?;
    add_seals(fd, SealFlag::F_SEAL_SEAL)?;
    let all = SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_FUTURE_WRITE
        | SealFlag::F_SEAL_SEAL;
    let have = seals(fd)?;
    if have.contains(all) {
        Ok(())
    } else {
        Err(ShmError::Seals { have: have.bits(), lack: (all - have).bits() })
    }
}

/// Judges a stranger's descriptor: a memfd, sealed against resizing, open for reading and writing,
/// of at least `bytes`. Seals are asked first: that call is refused at once for anything but a
/// memfd, and never waits for whatever file system is behind the descriptor.
///
/// # Errors
/// [`ShmError`] says what is wrong with it.
pub fn inspect(fd: BorrowedFd<'_>, bytes: u64) -> Result<(), ShmError> {
    let have = seals(fd)?;
    let must = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    if !have.contains(must) {
        return Err(ShmError::Seals { have: have.bits(), lack: (must - have).bits() });
    }
    if have
        .intersects(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_FUTURE_WRITE | SealFlag::F_SEAL_SEAL)
    {
        return Err(ShmError::Sealed { have: have.bits() });
    }
    let status = fcntl(fd, FcntlArg::F_GETFL).map_err(os("fcntl(F_GETFL)"))?;
    let status = OFlag::from_bits_retain(status);
    if status & OFlag::O_ACCMODE != OFlag::O_RDWR || status.contains(OFlag::O_APPEND) {
        return Err(ShmError::Access);
    }
    let stat = fstat(fd).map_err(os("fstat"))?;
    let have = u64::try_from(stat.st_size).unwrap_or(0);
    if bytes == 0 || bytes > have || !bytes.is_multiple_of(PAGE_BYTES) {
        return Err(ShmError::Size { have, want: bytes });
    }
    Ok(())
}

fn seals(fd: BorrowedFd<'_>) -> Result<SealFlag, ShmError> {
    let bits = fcntl(fd, FcntlArg::F_GET_SEALS).map_err(|_| ShmError::NotMemfd)?;
    Ok(SealFlag::from_bits_retain(bits))
}

fn add_seals(fd: BorrowedFd<'_>, seals: SealFlag) -> Result<(), ShmError> {
    let _ = fd.as_raw_fd();
    fcntl(fd, FcntlArg::F_ADD_SEALS(seals)).map_err(os("fcntl(F_ADD_SEALS)"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(bytes: u64) -> (OwnedFd, Mapping) {
        let fd = create(c"verbring-test", bytes, false).unwrap();
        let mapping = Mapping::shared(fd.as_fd(), bytes).unwrap();
        (fd, mapping)
    }

    #[test]
    fn sealed_for_good_refuses_new_maps_holes_and_sizes() {
        let (fd, ours) = sealed(8192);
        inspect(fd.as_fd(), 8192).unwrap();
        seal_for_good(fd.as_fd()).unwrap();
        ours.write(0, b"still writable");
        assert!(Mapping::shared(fd.as_fd(), 8192).is_err(), "a new writable map");
        assert!(ftruncate(&fd, 4096).is_err());
        assert!(ftruncate(&fd, 16384).is_err());
        let hole = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
            | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
        assert!(nix::fcntl::fallocate(&fd, hole, 0, 4096).is_err(), "a hole");
        // SAFETY: the mapping is live; MADV_REMOVE is expected to be refused, and would only
        // zero pages that nobody holds references into.
        let removed = unsafe { madvise(ours.base().cast(), 4096, MmapAdvise::MADV_REMOVE) };
        assert!(removed.is_err(), "MADV_REMOVE");
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let reopened = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        assert!(Mapping::shared(reopened.as_fd(), 8192).is_err(), "a map of the reopened file");
        let mut back = [0; 14];
        ours.read(0, &mut back);
        assert_eq!(&back, b"still writable");
    }

    #[test]
    fn a_view_cannot_be_made_writable() {
        let (fd, ours) = sealed(8192);
        let loose = memfd_create(c"loose", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        ftruncate(&loose, 4096).unwrap();
        assert!(matches!(View::open(loose.as_fd()), Err(ShmError::Seals { .. })));
        seal_for_good(fd.as_fd()).unwrap();
        let view = View::open(fd.as_fd()).unwrap();
        ours.word64(64).store(7, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(view.line(64)[0].load(std::sync::atomic::Ordering::Relaxed), 7);
        let base = view.mapping.base().cast();
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the mapping is live; the change is expected to be refused, and would break no
        // invariant of it.
        let changed = unsafe { nix::sys::mman::mprotect(base, 8192, both) };
        assert_eq!(changed, Err(Errno::EACCES));
        assert_eq!(nix::unistd::write(&fd, b"x"), Err(Errno::EPERM));
    }

    #[test]
    fn strangers_are_judged_by_what_they_sent() {
        let pipe = nix::unistd::pipe().unwrap();
        assert!(matches!(inspect(pipe.0.as_fd(), 4096), Err(ShmError::NotMemfd)));
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let bare = memfd_create(c"bare", flags).unwrap();
        ftruncate(&bare, 4096).unwrap();
        assert!(matches!(inspect(bare.as_fd(), 4096), Err(ShmError::Seals { .. })));
        let (fd, _mapping) = sealed(8192);
        assert!(matches!(inspect(fd.as_fd(), 12288), Err(ShmError::Size { .. })));
        assert!(matches!(inspect(fd.as_fd(), 0), Err(ShmError::Size { .. })));
        seal_for_good(fd.as_fd()).unwrap();
        assert!(matches!(inspect(fd.as_fd(), 8192), Err(ShmError::Sealed { .. })));
    }

    #[test]
    #[should_panic(expected = "outside its mapping")]
    fn a_range_that_wraps_is_refused() {
        let (_fd, mapping) = sealed(4096);
        mapping.write(u64::MAX - 3, b"12345678");
    }
}
