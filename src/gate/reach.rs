//! Reaching another host's gate. It may take seconds, so it runs on a thread of its own.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::channel::{Channel, ChannelError};
use super::{Key, NotReached};
use crate::clock;

/// How long one address may take to accept, and then to answer each time.
const WITHIN: Duration = Duration::from_secs(3);
/// How long the whole greeting may take, ns, however it is cut.
const GREETED_WITHIN_NS: u64 = 3_000_000_000;
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;
/// Bytes read at a time.
const READ_BYTES: usize = 512;

/// Connects to a gate and shows it the key; the connection is ready for messages.
pub(super) fn reach(
    host: &str,
    port: u16,
    key: &Key,
) -> Result<(TcpStream, SocketAddr, Channel), NotReached> {
    let named = |why| NotReached::Name { host: host.to_string(), why };
    let addresses: Vec<SocketAddr> =
        (host, port).to_socket_addrs().map_err(named)?.take(ADDRESSES_MAX).collect();
    let mut last = named(std::io::Error::new(ErrorKind::NotFound, "it has no address"));
    for address in addresses {
        match TcpStream::connect_timeout(&address, WITHIN) {
            Ok(stream) => {
                let channel = greet(&stream, address, key)?;
                return Ok((stream, address, channel));
            }
            Err(why) => last = NotReached::Connect { address, why },
        }
    }
    Err(last)
}

fn greet(mut stream: &TcpStream, address: SocketAddr, key: &Key) -> Result<Channel, NotReached> {
    let odd = |why: std::io::Error| {
        let silent = matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
        let why = if silent { "it says nothing".to_string() } else { why.to_string() };
        NotReached::Answer { address, why }
    };
    let refused = |why: ChannelError| {
        let why_text = why.to_string();
        match why {
            ChannelError::Key => NotReached::Refused { address, why: why_text, key: true },
            ChannelError::Version { .. } => {
                NotReached::Refused { address, why: why_text, key: false }
            }
            _ => NotReached::Answer { address, why: why_text },
        }
    };
    let _ = stream.set_nodelay(true);
    stream.set_read_timeout(Some(WITHIN)).map_err(odd)?;
    stream.set_write_timeout(Some(WITHIN)).map_err(odd)?;
    let mut channel = Channel::initiator(key).map_err(refused)?;
    let words = channel.unsent().to_vec();
    stream.write_all(&words).map_err(odd)?;
    channel.sent(words.len());
    let mut buffer = [0; READ_BYTES];
    let mut messages = Vec::new();
    let until_ns = clock::now_ns() + GREETED_WITHIN_NS;
    // A gate says nothing of itself before it is spoken to: what comes is its greeting.
    while !channel.proved() {
        if clock::now_ns() >= until_ns {
            return Err(odd(ErrorKind::TimedOut.into()));
        }
        let count = stream.read(&mut buffer).map_err(odd)?;
        if count == 0 {
            let why = "it closed the connection".to_string();
            return Err(NotReached::Answer { address, why });
        }
        channel.hear(&buffer[..count], &mut messages).map_err(refused)?;
    }
    if !messages.is_empty() {
        let why = "it speaks before it is spoken to".to_string();
        return Err(NotReached::Answer { address, why });
    }
    stream.set_read_timeout(None).map_err(odd)?;
    stream.set_write_timeout(None).map_err(odd)?;
    Ok(channel)
}
