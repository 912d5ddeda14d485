//! Flight recorders: made when a client asks for its own, handed to whoever may see it, and kept
//! until the engine has let go of the session.
//!
//! The memory is sealed before anybody else has the descriptor: nobody but the engine can ever map
//! it for writing. It is gone when the last holder of the descriptor is, and the engine is only
//! one of them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::jobs::{Memory, Work};
use super::objects::memory_refusal;
use super::server::{JobFor, Pending, Server};
use super::sessions::place;
use super::wire::{self, Refusal};
use crate::abi::{
    self, CANCEL_BY_RECORD, Detail, Kind, OpQuery, RecorderHeader, RecorderReply, RecorderRequest,
    SESSION_OWN, errno,
};
use crate::engine::Command;
use crate::ids::RecordId;
use crate::shm::{self, Mapping, PAGE_BYTES};
use crate::telemetry::Recorder;

/// A session's flight recorder as the control thread sees it.
#[derive(Debug)]
pub(super) struct RecorderMade {
    fd: OwnedFd,
    /// Keeps it mapped until the engine has let go, so that it is unmapped here and not there.
    _mapping: Arc<Mapping>,
    header: RecorderHeader,
}

impl Server {
    pub(super) fn recorder(
        &mut self,
        key: usize,
        request: &RecorderRequest,
    ) -> Result<(), Refusal> {
        let tag = request.head.tag;
        if self.config.recorder_entries == 0 {
            let text = "this engine keeps no flight recorders; set recorder_entries";
            return Err(Refusal::new(errno::EOPNOTSUPP, Detail::Message, text));
        }
        if request.session != SESSION_OWN {
            return self.show_recorder(key, request.session, tag);
        }
        if self.sessions.get(key).is_some_and(|session| session.recorder.is_some()) {
            self.hand_recorder(key, key, tag);
            return Ok(());
        }
        let bytes = self.recorder_bytes();
        self.check_bytes(key, "the flight recorder", bytes, bytes)?;
        if let Some(owner) = self.owner_of(key) {
            owner.bytes += bytes;
        }
        let job = self.jobs_for.insert(JobFor::Recorder { session: key, tag });
        self.hold(key);
        self.jobs.start(job, Work::Make { name: c"verbring-recorder", bytes, huge: false });
        Ok(())
    }

    /// What each recorder takes, and is charged for.
    fn recorder_bytes(&self) -> u64 {
        RecorderHeader::lay_out(self.config.recorder_entries).bytes().next_multiple_of(PAGE_BYTES)
    }

    /// The job that made a recorder's memory is over.
    pub(super) fn recorder_settled(
        &mut self,
        key: usize,
        tag: u64,
        made: Result<Memory, Option<Refusal>>,
    ) {
        let done = made.and_then(|memory| self.recorder_made(key, memory).map_err(Some));
        match done {
            Ok(()) => self.hand_recorder(key, key, tag),
            Err(refusal) => {
                self.give_back_recorder(key);
                if let Some(refusal) = refusal {
                    self.fail(key, Kind::Recorder, tag, &refusal);
                }
            }
        }
        self.settle(key);
    }

    fn recorder_made(&mut self, key: usize, memory: Memory) -> Result<(), Refusal> {
        // Before anybody has the descriptor, so that no hole can have been punched either.
        shm::seal_for_good(memory.fd.as_fd()).map_err(|error| memory_refusal(&error))?;
        let Some(session) = self.sessions.get_mut(key) else { return Ok(()) };
        let header = RecorderHeader {
            boot_id: self.boot_id,
            engine: u32::from(self.config.engine),
            session: place(key).0,
            engine_pid: std::process::id(),
            client_pid: u32::try_from(session.pid).unwrap_or(0),
            uid: session.uid,
            ..RecorderHeader::lay_out(self.config.recorder_entries)
        };
        let mapping = Arc::new(memory.mapping);
        let recorder = Recorder::create(Arc::clone(&mapping), &header);
        session.recorder = Some(RecorderMade { fd: memory.fd, _mapping: mapping, header });
        self.order(Command::SetRecorder { session: place(key), recorder });
        Ok(())
    }

    /// The memory is no longer charged.
    pub(super) fn give_back_recorder(&mut self, key: usize) {
        let bytes = self.recorder_bytes();
        if let Some(owner) = self.owner_of(key) {
            owner.bytes -= bytes;
        }
    }

    /// Hands over the first recorder, from a session's number on, that the asking uid may see.
    fn show_recorder(&mut self, key: usize, from: u32, tag: u64) -> Result<(), Refusal> {
        let uid = self.sessions.get(key).map_or(abi::UID_OWN, |session| session.uid);
        let seen = self.sessions.iter().find(|(other, session)| {
            let visible = uid == 0 || session.uid == uid;
            place(*other).0 >= from && visible && session.recorder.is_some() && !session.ending
        });
        match seen {
            Some((other, _)) => {
                self.hand_recorder(key, other, tag);
                Ok(())
            }
            None => {
                let text = format!("no session from {from} on has a flight recorder for uid {uid}");
                Err(Refusal::new(errno::ENOENT, Detail::None, text))
            }
        }
    }

    fn hand_recorder(&mut self, key: usize, of: usize, tag: u64) {
        let Some(made) = self.sessions.get(of).and_then(|session| session.recorder.as_ref()) else {
            return;
        };
        let reply = RecorderReply {
            reply: wire::reply_head::<RecorderReply>(Kind::Recorder, tag),
            session: made.header.session,
            entries: made.header.entries,
            bytes: made.header.bytes(),
        };
        let Ok(fd) = made.fd.try_clone() else {
            let text = "the engine has no descriptor to spare";
            let refusal = Refusal::new(errno::ENOMEM, Detail::None, text);
            return self.fail(key, Kind::Recorder, tag, &refusal);
        };
        self.answer(key, &reply, &[fd.as_fd()]);
    }

    /// WHY for an op of any session of this uid, which only its record can name.
    pub(super) fn why_anywhere(&mut self, key: usize, query: &OpQuery) -> Result<(), Refusal> {
        if u64::from(query.by) != CANCEL_BY_RECORD {
            let text = format!("by is {}, but only a record (2) names an op of any ring", query.by);
            return Err(Refusal::new(errno::EINVAL, Detail::Arg, text));
        }
        let uid = self.sessions.get(key).map_or(abi::UID_OWN, |session| session.uid);
        let owner = self.owner_of(key).map(|owner| owner.place);
        let owner = if uid == 0 { None } else { owner };
        let token = self.pending.insert(Pending::Why { session: key, tag: query.head.tag }) as u64;
        self.hold(key);
        self.order(Command::Find { record: RecordId(query.target), owner, token });
        Ok(())
    }
}
