//! `verbring probe`: what an engine serves, and how much of it this user may have.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use verbring::Session;
use verbring::abi::{
    Opcode, SQE_COALESCE, SQE_DRAIN, SQE_HARDLINK, SQE_LINK, SQE_NO_MERGE, SQE_NOTIFY, SQE_REVOKE,
    SQE_SKIP_SUCCESS, SQE_SUPERSEDE,
};
use verbring::client::{ContractOf, Probe};

use super::demo::fabric_name;
use super::{Failure, class_name, grouped, say, say_json};

/// Arguments of `verbring probe`.
#[derive(Debug, Args)]
pub(crate) struct ProbeEngine {
    /// Where the engine listens.
    #[arg(long, value_name = "PATH", env = "VERBRING_SOCKET")]
    socket: PathBuf,
    /// Prints one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

impl ProbeEngine {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let session =
            Session::connect(&self.socket).map_err(|error| Failure::of("cannot ask", &error))?;
        let probe = session.probe().map_err(|error| Failure::of("no answer", &error))?;
        if self.json {
            say_json(&to_json(&session, &probe))
        } else {
            say(&to_text(&session, &probe))
        }
    }
}

fn to_json(session: &Session, probe: &Probe) -> serde_json::Value {
    json!({
        "engine": session.engine(),
        "pid": session.engine_pid(),
        "opcodes": opcodes(probe),
        "sqe_flags": flags(probe),
        "features": probe.features,
        "fabrics": fabrics(probe),
        "op_bytes_max": probe.op_bytes_max,
        "pages_max": probe.pages_max,
        "entries_max": probe.entries_max,
        "rings_max": probe.rings_max,
        "regions_max": probe.regions_max,
        "region_bytes_max": probe.region_bytes_max,
        "class_ceiling": probe.class_ceiling.map(class_name),
        "window_ops": probe.window_ops,
        "window_bytes": probe.window_bytes,
        "slice_bytes": probe.slice_bytes,
        "uid": probe.uid,
        "contract": contract(probe).map(|(name, _)| name),
        "sessions_max": probe.sessions_max,
        "ops_max": probe.ops_max,
        "ops_bytes_max": probe.ops_bytes_max,
        "high_bytes_max": probe.high_bytes_max,
        "weight": probe.weight,
        "control_per_s": probe.control_per_s,
    })
}

fn to_text(session: &Session, probe: &Probe) -> String {
    let ceiling = probe.class_ceiling.map_or("not known", class_name).to_string();
    let rows = [
        ("engine", format!("{}, process {}", session.engine(), session.engine_pid())),
        ("opcodes", opcodes(probe).join(" ")),
        ("SQE flags", flags(probe).join(" ")),
        ("fabrics", fabrics(probe).join(" ")),
        ("bytes of one op, at most", grouped(probe.op_bytes_max.into())),
        ("pages of one op, at most", grouped(probe.pages_max.into())),
        ("entries of one ring, at most", grouped(probe.entries_max.into())),
        ("window in ops", grouped(probe.window_ops.into())),
        ("window in bytes", grouped(probe.window_bytes)),
        ("bytes of one slice", grouped(probe.slice_bytes.into())),
        ("contract", contract(probe).map_or_else(|| "not known".to_string(), |(_, words)| words)),
        ("sessions, at most", grouped(probe.sessions_max.into())),
        ("rings, at most", grouped(probe.rings_max.into())),
        ("regions and imports, at most", grouped(probe.regions_max.into())),
        ("bytes in regions, at most", grouped(probe.region_bytes_max)),
        ("ops in flight, at most", grouped(probe.ops_max.into())),
        ("bytes they ask for, at most", grouped(probe.ops_bytes_max)),
        ("bytes of class high posted", grouped(probe.high_bytes_max)),
        ("most urgent class", ceiling),
        ("share beside other uids", probe.weight.to_string()),
        ("control messages a second", grouped(probe.control_per_s.into())),
    ];
    rows.map(|(words, value)| format!("{words:30} {value}\n")).concat()
}

/// Whose contract is in force, as its table of settings is called, and in words.
fn contract(probe: &Probe) -> Option<(String, String)> {
    Some(match probe.contract? {
        ContractOf::All => ("quota".to_string(), "quota, the default for all uids".to_string()),
        ContractOf::Uid => (format!("uid.{}", probe.uid), format!("uid {}", probe.uid)),
    })
}

fn opcodes(probe: &Probe) -> Vec<String> {
    let name = |opcode| match opcode {
        Opcode::Nop => "NOP",
        Opcode::Write => "WRITE",
        Opcode::Read => "READ",
        Opcode::Writev => "WRITEV",
        Opcode::Readv => "READV",
        Opcode::FetchAdd => "FETCH_ADD",
        Opcode::CmpSwap => "CMP_SWAP",
        Opcode::Join => "JOIN",
        Opcode::Cancel => "CANCEL",
        Opcode::Flush => "FLUSH",
        Opcode::Arm => "ARM",
        Opcode::Run => "RUN",
    };
    let served = Opcode::ALL.into_iter().filter(|opcode| probe.serves(*opcode));
    served.map(|opcode| name(opcode).to_string()).collect()
}

fn flags(probe: &Probe) -> Vec<String> {
    const NAMES: [(u16, &str); 9] = [
        (SQE_LINK, "LINK"),
        (SQE_HARDLINK, "HARDLINK"),
        (SQE_DRAIN, "DRAIN"),
        (SQE_COALESCE, "COALESCE"),
        (SQE_SUPERSEDE, "SUPERSEDE"),
        (SQE_NO_MERGE, "NO_MERGE"),
        (SQE_NOTIFY, "NOTIFY"),
        (SQE_SKIP_SUCCESS, "SKIP_SUCCESS"),
        (SQE_REVOKE, "REVOKE"),
    ];
    let served = NAMES.iter().filter(|(bit, _)| probe.sqe_flags & u64::from(*bit) != 0);
    served.map(|(_, name)| (*name).to_string()).collect()
}

fn fabrics(probe: &Probe) -> Vec<String> {
    (0..64).filter(|bit| probe.fabrics >> bit & 1 != 0).map(fabric_name).collect()
}
