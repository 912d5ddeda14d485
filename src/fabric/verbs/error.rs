//! Why verbs cannot be had: each reason once, with what to do about it.

use std::path::PathBuf;

use thiserror::Error;

use crate::fabric::qp::provider::ProviderError;

/// A device could not be found or opened. The `local` fabric works all the same.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VerbsError {
    /// The library is not installed.
    #[error(
        "libibverbs.so.1 cannot be loaded: install rdma-core's libraries (on Debian: apt-get \
         install libibverbs1 ibverbs-providers)"
    )]
    NoLibrary {
        /// What the loader says.
        source: libloading::Error,
    },
    /// The library is too old.
    #[error("libibverbs.so.1 has no {symbol}: install rdma-core 17 or newer")]
    NoSymbol {
        /// The function that is missing.
        symbol: &'static str,
    },
    /// The kernel knows nothing of RDMA.
    #[error(
        "the kernel has no RDMA (errno {errno}): load ib_uverbs and the card's driver, or, \
         without a card, rdma_rxe (modprobe rdma_rxe; rdma link add rxe0 type rxe netdev NAME)"
    )]
    NoKernel {
        /// Positive errno.
        errno: i32,
    },
    /// There is not one device.
    #[error(
        "there is no RDMA device: load the card's driver and install its provider (on Debian: \
         ibverbs-providers), or, without a card: rdma link add rxe0 type rxe netdev NAME"
    )]
    NoDevice,
    /// No device of this name.
    #[error(
        "libibverbs has no device {name}: choose one of {have}, or install its provider (on \
         Debian: ibverbs-providers)"
    )]
    NotFound {
        /// The name.
        name: String,
        /// Those that are there.
        have: String,
    },
    /// The device may not be opened.
    #[error(
        "no right to open {name}: this user must be able to read and write {}, for example by a \
         group that a udev rule gives it to",
        node.display()
    )]
    NoRights {
        /// The device.
        name: String,
        /// Its file.
        node: PathBuf,
    },
    /// The kernel has the device, but there is no file for it here.
    #[error(
        "{name} cannot be opened, as {} is missing: give the file to this container, or let udev \
         make it",
        node.display()
    )]
    NoNode {
        /// The device.
        name: String,
        /// Its file.
        node: PathBuf,
    },
    /// Too little memory may be locked for the device's queues.
    #[error(
        "{call} on {name} got no memory while {limit_bytes} bytes may be locked: raise the limit \
         (ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit)"
    )]
    LockedMemory {
        /// The device.
        name: String,
        /// The call.
        call: &'static str,
        /// The soft limit, bytes.
        limit_bytes: u64,
    },
    /// The device has no such port.
    #[error("{name} has no port {port}: choose one from 1 to {ports}")]
    NoPort {
        /// The device.
        name: String,
        /// The port.
        port: u8,
        /// How many there are.
        ports: u8,
    },
    /// The port carries nothing.
    #[error(
        "port {port} of {name} is not active (state {state}): bring its link up (ip link set \
         NETDEV up), or look at the cable and the subnet manager"
    )]
    PortDown {
        /// The device.
        name: String,
        /// The port.
        port: u8,
        /// `ibv_port_state`.
        state: u32,
    },
    /// Another call failed.
    #[error("{call} on {name} failed with errno {errno}: look at the kernel's log (dmesg)")]
    Os {
        /// The device.
        name: String,
        /// The call.
        call: &'static str,
        /// Positive errno.
        errno: i32,
    },
    /// A provider's call failed.
    #[error(transparent)]
    Provider(#[from] ProviderError),
}
