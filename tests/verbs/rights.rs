//! A machine that does not permit it: each reason is one line that says what to do.
//!
//! The tests run themselves again, as a process with fewer rights.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use verbring::fabric::qp::provider::ProviderControl;
use verbring::fabric::verbs::{VerbsSettings, open};

use super::side::{ALL, places};

/// Runs a test of this file by itself under `setpriv` and other commands; its standard output.
fn again(name: &str, under: &[&str]) -> String {
    let own = env::current_exe().expect("a path");
    let out = Command::new(under[0])
        .args(&under[1..])
        .arg(own)
        .args(["--ignored", "--exact", "--nocapture", name])
        .env("VERBRING_TEST_AGAIN", "1")
        .output()
        .expect("setpriv and prlimit");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    text
}

fn is_again() -> bool {
    env::var_os("VERBRING_TEST_AGAIN").is_some()
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn too_little_locked_memory_is_told() {
    if is_again() {
        let [first, _] = places();
        let (_, mut control) = match open(&VerbsSettings::new(&first.device, 1)) {
            Ok(opened) => opened,
            Err(error) => return println!("TOLD {error}"),
        };
        let memory = verbring::shm::Mapping::anonymous(4 << 20).expect("memory");
        let error = control.register(&memory.into(), ALL).expect_err("1 MiB may be locked");
        return println!("TOLD {error}");
    }
    let under = ["prlimit", "--memlock=1048576", "setpriv", "--bounding-set=-ipc_lock"];
    let text = again("rights::too_little_locked_memory_is_told", &under);
    assert!(text.contains("TOLD ibv_reg_mr failed with errno 12"), "{text}");
    assert!(text.contains("ulimit -l"), "{text}");
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn a_device_that_may_not_be_opened_is_told() {
    let [first, _] = places();
    if is_again() {
        let error = open(&VerbsSettings::new(&first.device, 1)).expect_err("no right");
        return println!("TOLD {error}");
    }
    let nodes: Vec<_> = fs::read_dir("/dev/infiniband")
        .expect("device files")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.to_string_lossy().contains("uverbs"))
        .collect();
    let modes = |mode| {
        for node in &nodes {
            fs::set_permissions(node, fs::Permissions::from_mode(mode)).expect("owned by root");
        }
    };
    modes(0);
    let name = "rights::a_device_that_may_not_be_opened_is_told";
    let text = again(name, &["setpriv", "--bounding-set=-dac_override,-dac_read_search"]);
    modes(0o666);
    assert!(text.contains(&format!("TOLD no right to open {}", first.device)), "{text}");
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn a_device_without_its_file_is_told() {
    let [first, _] = places();
    fs::rename("/dev/infiniband", "/dev/elsewhere").expect("owned by root");
    let error = open(&VerbsSettings::new(&first.device, 1)).expect_err("no file");
    fs::rename("/dev/elsewhere", "/dev/infiniband").expect("put back");
    let error = error.to_string();
    assert!(error.contains("/dev/infiniband/uverbs") && error.contains("is missing"), "{error}");
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn names_and_ports_that_are_not_there_are_told_with_those_that_are() {
    let [first, second] = places();
    let error = open(&VerbsSettings::new("mlx5_77", 1)).expect_err("no such device").to_string();
    assert!(error.contains("mlx5_77") && error.contains(&first.device), "{error}");
    assert!(error.contains(&second.device), "{error}");
    for port in [0, 9] {
        let error = open(&VerbsSettings::new(&first.device, port)).expect_err("no such port");
        assert!(error.to_string().contains("from 1 to 1"), "{error}");
    }
}
