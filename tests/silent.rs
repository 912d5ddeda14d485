//! Claim: nothing is allocated on the engine thread after start, from the first SQE to the last
//! CQE, with an entry in the session's flight recorder for each op. The allocator of this binary
//! counts what the engine thread asks for.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(unsafe_code, reason = "a counting global allocator is unsafe to implement")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use verbring::abi::{Class, Opcode, SQE_NOTIFY, Sqe};
use verbring::{Rights, RingOptions};

struct Counting;

/// The engine thread's number, once it is to be watched; 0 before.
static WATCHED: AtomicI32 = AtomicI32::new(0);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

fn count() {
    let watched = WATCHED.load(Ordering::Relaxed);
    if watched != 0 && nix::unistd::gettid().as_raw() == watched {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        // SAFETY: `pointer` came from `alloc` above with this layout, as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn engine_thread() -> i32 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let path = tasks
        .map(|task| task.unwrap().path())
        .find(|path| {
            let comm = std::fs::read_to_string(path.join("comm"));
            comm.is_ok_and(|comm| comm.trim() == "verbring-engine")
        })
        .unwrap();
    path.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

#[test]
fn nothing_is_allocated_after_start() {
    let engine = verbring::Engine::builder().spawn().unwrap();
    let session = engine.connect().unwrap();
    let region = session.alloc(1 << 20).unwrap();
    let secret = region.export("silent", Rights::ALL).unwrap();
    let import = session.import("silent", None, &secret).unwrap();
    let mut ring = session.raw_ring(RingOptions::new(64, 128)).unwrap();
    WATCHED.store(engine_thread(), Ordering::SeqCst);
    let classes = [Class::High, Class::Medium, Class::Low];
    let (mut pushed, mut done) = (0u64, 0u64);
    while done < 200_000 {
        while pushed < done + 64 {
            let opcodes = [Opcode::Nop, Opcode::Write, Opcode::Read, Opcode::FetchAdd];
            let opcode = opcodes[usize::try_from(pushed % 4).unwrap()];
            let mut sqe = Sqe {
                opcode: opcode as u8,
                class: classes[usize::try_from(pushed % 3).unwrap()] as u8,
                user_data: pushed,
                ..Sqe::default()
            };
            if opcode != Opcode::Nop {
                sqe.local_region = region.id();
                sqe.remote_region = import.id();
                sqe.remote_offset = 512 << 10;
                sqe.bytes = if opcode == Opcode::FetchAdd { 0 } else { 4096 };
                sqe.flags = if pushed.is_multiple_of(5) { SQE_NOTIFY } else { 0 };
            }
            if ring.push(sqe).is_none() {
                break;
            }
            pushed += 1;
        }
        ring.submit();
        ring.wait(1, None).unwrap();
        while let Some(cqe) = ring.pop().unwrap() {
            assert!(cqe.res >= 0, "{cqe:?}");
            done += 1;
        }
    }
    let counted = ALLOCATIONS.load(Ordering::SeqCst);
    WATCHED.store(0, Ordering::SeqCst);
    println!("{done} ops, {counted} allocations or frees on the engine thread");
    assert_eq!(counted, 0);
    assert_eq!(session.last_records().len(), 1_024, "the recorder is full of entries");
    engine.shutdown().unwrap();
}
