//! Which cores there are, and staying on one.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::cli::Failure;

/// The cores that this process may run on.
pub(super) fn allowed() -> Result<Vec<usize>, Failure> {
    let set = sched_getaffinity(Pid::from_raw(0))
        .map_err(|error| Failure::of("cannot ask for the cores", &error))?;
    Ok((0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).collect())
}

/// Keeps this thread on one core.
pub(super) fn pin_to(core: usize) -> Result<(), Failure> {
    let mut set = CpuSet::new();
    set.set(core)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|error| Failure::of(format!("cannot stay on core {core}"), &error))
}

/// Where the other side runs, and where the clients do, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cores {
    pub(super) engine: usize,
    pub(super) clients: Vec<usize>,
}

impl Cores {
    /// The engine's core, then the clients'; by default the first for the engine and the rest for
    /// the clients. With a single core, all share it.
    pub(super) fn choose(asked: &[usize], allowed: &[usize]) -> Result<Self, Failure> {
        if let Some(core) = asked.iter().find(|core| !allowed.contains(core)) {
            let limit = format!("cores this process may use: {allowed:?}");
            return Err(Failure::Usage(format!("--pin is {core}, but must be of the {limit}")));
        }
        let order = if asked.is_empty() { allowed } else { asked };
        match order {
            [] => Err(Failure::Failed("no core to run on".to_string())),
            [only] => Ok(Self { engine: *only, clients: vec![*only] }),
            [engine, clients @ ..] => Ok(Self { engine: *engine, clients: clients.to_vec() }),
        }
    }

    /// True if both sides share one core, so that whoever waits keeps the other from working.
    pub(super) fn is_one(&self) -> bool {
        self.clients.contains(&self.engine)
    }

    /// The core of the client with this index.
    pub(super) fn of_client(&self, index: usize) -> usize {
        self.clients[index % self.clients.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_has_the_first_core() {
        let chosen = |asked: &[usize], allowed: &[usize]| Cores::choose(asked, allowed).unwrap();
        let cores = chosen(&[], &[0, 1, 2]);
        assert_eq!((cores.engine, cores.clients.as_slice()), (0, [1, 2].as_slice()));
        assert_eq!([0, 1, 2].map(|index| cores.of_client(index)), [1, 2, 1]);
        assert_eq!(chosen(&[2, 0], &[0, 1, 2]), Cores { engine: 2, clients: vec![0] });
        let one = chosen(&[], &[3]);
        assert_eq!(one, Cores { engine: 3, clients: vec![3] });
        assert!(one.is_one() && !chosen(&[], &[0, 1]).is_one());
        let Err(Failure::Usage(text)) = Cores::choose(&[7], &[0, 1]) else { panic!("taken") };
        assert_eq!(text, "--pin is 7, but must be of the cores this process may use: [0, 1]");
    }
}
