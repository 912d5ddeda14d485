//! The demo's client that offers a region and looks at what comes.

use std::path::Path;

use sha2::{Digest, Sha256};
use verbring::{Region, Rights, Session};

use super::talk::{Order, Report, next_order, report};
use super::{EXPORT_NAME, WINDOW_BYTES, digest_text};
use crate::cli::Failure;

/// Exports a region, then digests its content whenever it is told to look, until no more is wanted.
pub(super) fn run(socket: &Path) -> Result<(), Failure> {
    let session = Session::connect(socket).map_err(|error| Failure::of("cannot attach", &error))?;
    let region =
        session.alloc(WINDOW_BYTES).map_err(|error| Failure::of("cannot have a region", &error))?;
    let secret = region
        .export(EXPORT_NAME, Rights::READ | Rights::WRITE)
        .map_err(|error| Failure::of("cannot export", &error))?;
    report(&Report::Exported { name: EXPORT_NAME.to_string(), secret: secret.to_hex() })?;

    let mut digest = Sha256::new();
    while let Some(order) = next_order()? {
        let Order::Look { bytes, last } = order else {
            return Err(Failure::Failed("an order for the sender".to_string()));
        };
        look(&region, bytes, &mut digest)?;
        let sha256 = last.then(|| digest_text(&digest.finalize_reset()));
        report(&Report::Seen { sha256 })?;
    }
    region.release().map_err(|error| Failure::of("cannot give the region back", &error))
}

/// Adds the region's first `bytes` to the digest.
pub(super) fn look(region: &Region, bytes: u64, digest: &mut Sha256) -> Result<(), Failure> {
    let lease = region.lend(0..bytes).map_err(|error| Failure::of("cannot look", &error))?;
    let mut piece = vec![0; 1 << 16];
    for at in (0..bytes).step_by(piece.len()) {
        let length = usize::try_from(bytes - at).map_or(piece.len(), |left| left.min(piece.len()));
        lease.read(at, &mut piece[..length]);
        digest.update(&piece[..length]);
    }
    Ok(())
}
