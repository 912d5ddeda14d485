//! The processes of a round that compares engines: one engine for each arm of the comparison, and
//! clients that are attached to all of them, so that the arms can take turns.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};

use super::talk::{Event, Order, Report, Role, Worker, next_report};
use crate::cli::Failure;
use crate::cli::place::Place;

/// One of the engines that are compared.
#[derive(Clone, Debug)]
pub(super) struct Arm {
    /// Its name in rows.
    pub(super) name: String,
    /// `name=value` each.
    pub(super) settings: Vec<String>,
}

/// The processes. They end with the value.
pub(super) struct Crew {
    clients: Vec<Worker>,
    engines: Vec<Worker>,
    _places: Vec<Place>,
    happened: Receiver<Event>,
}

impl Crew {
    /// Starts an engine for each arm, and clients, each of which is told what `prepare` makes of
    /// its index and of the engines' sockets. All are ready when it returns.
    pub(super) fn start(
        arms: &[Arm],
        clients: usize,
        prepare: impl Fn(usize, Vec<PathBuf>) -> Order,
    ) -> Result<Self, Failure> {
        let (events, happened) = mpsc::channel();
        let (mut engines, mut places) = (Vec::new(), Vec::new());
        for arm in arms {
            let place = Place::new("bench")?;
            let mut engine = Worker::start(Role::Engine, &events)?;
            let settings = arm.settings.clone();
            engine.tell(&Order::Serve { socket: place.socket(), settings })?;
            ready(&happened)?;
            engines.push(engine);
            places.push(place);
        }
        let mut crew = Self { clients: Vec::new(), engines, _places: places, happened };
        let sockets: Vec<PathBuf> = crew._places.iter().map(Place::socket).collect();
        for index in 0..clients {
            let mut client = Worker::start(Role::Client, &events)?;
            client.tell(&prepare(index, sockets.clone()))?;
            ready(&crew.happened)?;
            crew.clients.push(client);
        }
        Ok(crew)
    }

    /// Tells all clients the same, and waits for a report of each, in any order.
    pub(super) fn play(&mut self, order: &Order) -> Result<Vec<Report>, Failure> {
        for client in &mut self.clients {
            client.tell(order)?;
        }
        self.clients.iter().map(|_| next_report(&self.happened)).collect()
    }

    /// Their process ids.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.engines.iter().chain(&self.clients).map(Worker::pid).collect()
    }
}

fn ready(happened: &Receiver<Event>) -> Result<(), Failure> {
    match next_report(happened)? {
        Report::Ready { .. } => Ok(()),
        other => Err(out_of_turn(&other)),
    }
}

/// A report that has no place where it came.
pub(super) fn out_of_turn(report: &Report) -> Failure {
    Failure::Failed(format!("a process reported out of turn: {report:?}"))
}
