//! The telemetry page: made before the engine's threads start, and handed to those who run the
//! engine when they ask for it.
//!
//! It tells of all sessions, how much each moves and when, so that not everybody may have it. As
//! with flight recorders the memory is sealed before anybody else has the descriptor.

use std::os::fd::{AsFd, OwnedFd};

use super::server::Server;
use super::wire::{self, Refusal};
use crate::abi::{Detail, Kind, TelemetryHeader, TelemetryReply, TelemetryRequest, errno};
use crate::shm::{self, Mapping, PAGE_BYTES, ShmError};
use crate::telemetry::Page;

/// The page's memory, as the control thread has it.
#[derive(Debug)]
pub(crate) struct TelemetryMade {
    fd: OwnedFd,
    bytes: u64,
}

impl TelemetryMade {
    /// Makes, populates and seals the memory of a page; returns the engine's end as well.
    pub(crate) fn new(header: &TelemetryHeader) -> Result<(Self, Page), ShmError> {
        let bytes = header.bytes().next_multiple_of(PAGE_BYTES);
        let fd = shm::create(c"verbring-telemetry", bytes, false)?;
        let mapping = Mapping::shared(fd.as_fd(), bytes)?;
        mapping.populate()?;
        shm::seal_for_good(fd.as_fd())?;
        Ok((Self { fd, bytes }, Page::create(mapping, header)))
    }
}

impl Server {
    pub(super) fn show_telemetry(
        &mut self,
        key: usize,
        request: &TelemetryRequest,
    ) -> Result<(), Refusal> {
        self.check_operator(key, "the telemetry page is")?;
        let fd = self.telemetry.fd.try_clone().map_err(|_| {
            Refusal::new(errno::ENOMEM, Detail::None, "the engine has no descriptor to spare")
        })?;
        let reply = TelemetryReply {
            reply: wire::reply_head::<TelemetryReply>(Kind::Telemetry, request.head.tag),
            bytes: self.telemetry.bytes,
        };
        self.answer(key, &reply, &[fd.as_fd()]);
        Ok(())
    }
}
