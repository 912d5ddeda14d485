//! Bare queue pairs between two hosts, without an engine: what cards and cables give by themselves.
//!
//! One side listens on TCP. For each point of a sweep the other connects, both say which queue
//! pair and which memory is theirs, and from then on the listening side does nothing: WRITE and
//! READ are one-sided. It has memory for this alone, with nothing in it, and no key guards it: it
//! is for a quick look, and not to be left running.
//! **Tests**: here, what is said over TCP; `tests/verbs/hosts.rs` between two cards.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use verbring::fabric::qp::provider::{Endpoint, Key};
use verbring::host::Config;

use super::far::{self, Time};
use super::ports::Port;
use super::rows::{Row, head};
use super::shape::Shape;
use super::verbs::{End, VerbsPlan, VerbsRig};
use super::who::Who;
use crate::cli::{Failure, complain, say, say_json};

/// One side, as the other must know it. A line of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Hello {
    /// Of this exchange; the only one there is.
    version: u32,
    number: u32,
    psn: u32,
    gid: [u8; 16],
    lid: u16,
    mtu_bytes: u32,
    reads_in: u8,
    reads_out: u8,
    /// Its memory.
    address: u64,
    rkey: u32,
    bytes: u64,
}

impl Hello {
    fn new(own: Endpoint, key: Key, bytes: u64) -> Self {
        let Endpoint { number, psn, gid, lid, mtu_bytes, reads_in, reads_out, .. } = own;
        let (address, rkey) = (key.address, key.rkey);
        let version = VERSION;
        Self {
            version,
            number,
            psn,
            gid,
            lid,
            mtu_bytes,
            reads_in,
            reads_out,
            address,
            rkey,
            bytes,
        }
    }

    fn endpoint(&self) -> Endpoint {
        let Self { number, psn, gid, lid, mtu_bytes, reads_in, reads_out, .. } = *self;
        Endpoint { number, psn, gid, lid, mtu_bytes, reads_in, reads_out, credits: 0 }
    }
}

/// A TCP connection by which two ends meet.
struct Wire {
    stream: TcpStream,
    /// The same; the other side may say its next line before this one is read.
    lines: BufReader<TcpStream>,
    from: SocketAddr,
}

impl Wire {
    fn new(stream: TcpStream, from: SocketAddr) -> Result<Self, Failure> {
        let failed = |error| Failure::of(format!("cannot talk to {from}"), &error);
        stream.set_read_timeout(Some(WITHIN)).map_err(failed)?;
        stream.set_write_timeout(Some(WITHIN)).map_err(failed)?;
        let lines = BufReader::new(stream.try_clone().map_err(failed)?);
        Ok(Self { stream, lines, from })
    }

    fn say(&self, text: &str) -> Result<(), Failure> {
        let line = format!("{text}\n");
        (&self.stream)
            .write_all(line.as_bytes())
            .map_err(|error| Failure::of(format!("cannot talk to {}", self.from), &error))
    }

    fn hear(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        (&mut self.lines)
            .take(LINE_BYTES_MAX)
            .read_line(&mut line)
            .map_err(|error| Failure::of(format!("{} says nothing", self.from), &error))?;
        Ok(line.trim_end().to_string())
    }

    fn meet(&mut self, own: &Hello) -> Result<Hello, Failure> {
        let text = serde_json::to_string(own)
            .map_err(|error| Failure::of("cannot write a message", &error))?;
        self.say(&text)?;
        read_hello(&self.hear()?).map_err(|why| {
            Failure::Failed(format!("{} is no verbring bench of this version: {why}", self.from))
        })
    }
}

fn read_hello(line: &str) -> Result<Hello, String> {
    let hello: Hello = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if hello.version != VERSION {
        return Err(format!("version is {}, but must be {VERSION}", hello.version));
    }
    Ok(hello)
}

/// Lets others measure their way to this host's port, until a signal.
pub(super) fn listen(at: SocketAddr, port: &Port, json: bool) -> Result<(), Failure> {
    let failed = |error| Failure::of(format!("--listen is {at}, where nobody can listen"), &error);
    let listener = TcpListener::bind(at).map_err(failed)?;
    let at = listener.local_addr().map_err(failed)?;
    if json {
        say_json(&serde_json::json!({ "listening": at.to_string(), "port": port.to_string() }))?;
    } else {
        let there = "on the other host: verbring bench --to";
        say(&format!(
            "{port} listens at {at}, without an engine, to whoever comes; {there} {at}\n"
        ))?;
    }
    loop {
        let served = listener
            .accept()
            .map_err(|error| Failure::of("cannot accept", &error))
            .and_then(|(stream, from)| Wire::new(stream, from))
            .and_then(|wire| serve(wire, port));
        if let Err(Failure::Failed(text) | Failure::Usage(text)) = served {
            complain(&text);
        }
    }
}

/// One queue pair, for as long as the other side wants it.
fn serve(mut wire: Wire, port: &Port) -> Result<(), Failure> {
    let mut end = End::open(port, &plan(port), LENT_BYTES)?;
    let from = wire.from;
    let failed = |error| Failure::of(format!("no queue pair to {from}"), &error);
    let own = end.prepare().map_err(failed)?;
    let peer = wire.meet(&Hello::new(own, end.key, LENT_BYTES))?;
    end.join(own, peer.endpoint()).map_err(failed)?;
    wire.say(READY)?;
    // That it hangs up is all that is still to be heard; the slices take their time.
    wire.stream
        .set_read_timeout(Some(SLICES_MAX))
        .map_err(|error| Failure::of("cannot wait", &error))?;
    wire.hear().map(|_| ())
}

/// Measures every shape to the port that listens at `to`.
pub(super) fn measure(
    to: SocketAddr,
    port: &Port,
    shapes: &[Shape],
    time: Time,
    json: bool,
) -> Result<Vec<Row>, Failure> {
    let terms = far::terms(time, Who::Verbs);
    if !json {
        say(&head())?;
    }
    let mut all = Vec::new();
    for shape in shapes {
        let (mut rig, wire) = reach(to, port, shape)?;
        let measured = far::play(&mut rig, shape, &terms, None)?;
        drop(wire);
        all.extend(far::tell_all(&measured, shape, &terms, json, |row| {
            row["peer"] = serde_json::json!(to.to_string());
        })?);
    }
    Ok(all)
}

fn reach(to: SocketAddr, port: &Port, shape: &Shape) -> Result<(VerbsRig, Wire), Failure> {
    let stream = TcpStream::connect_timeout(&to, WITHIN).map_err(|error| {
        Failure::of(format!("--to is {to}, where no bench --listen is reached"), &error)
    })?;
    let mut wire = Wire::new(stream, to)?;
    let mut end = End::open(port, &plan(port), shape.memory_bytes())?;
    let failed = |error| Failure::of(format!("no queue pair to {to}"), &error);
    let own = end.prepare().map_err(failed)?;
    let peer = wire.meet(&Hello::new(own, end.key, shape.memory_bytes()))?;
    if shape.memory_bytes() > peer.bytes {
        let (op, bytes, needs) = (shape.op.name(), shape.op_bytes(), shape.memory_bytes());
        let text = format!(
            "{op} of {bytes} bytes goes over {needs} bytes there, but there are {}: a smaller \
             --size or --working-set",
            peer.bytes
        );
        return Err(Failure::Usage(text));
    }
    end.join(own, peer.endpoint()).map_err(failed)?;
    if wire.hear()? != READY {
        return Err(Failure::Failed(format!("{to} has no queue pair: see what it says there")));
    }
    // Of the far key an initiator uses these two alone.
    let key = Key { address: peer.address, rkey: peer.rkey, ..end.key };
    let rig = VerbsRig::to_far(end, key, &plan(port), shape)?;
    Ok((rig, wire))
}

fn plan(port: &Port) -> VerbsPlan {
    VerbsPlan::new([port.clone(), port.clone()], &Config::default(), MEDIUM)
}

const VERSION: u32 = 1;
const READY: &str = "ready";
/// The class whose service level and traffic class are used: with default settings all are alike.
const MEDIUM: u8 = 2;
/// Bytes that the listening side lends to each that comes.
const LENT_BYTES: u64 = 16 << 20;
/// More of a line is no hello.
const LINE_BYTES_MAX: u64 = 1_024;
/// One step of the meeting, which may register memory, takes no longer unless something hangs.
const WITHIN: Duration = Duration::from_secs(30);
/// A point of a sweep takes no longer: 3,600 s of slices and as much again for what lies between.
const SLICES_MAX: Duration = Duration::from_secs(7_200);

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn hello() -> Hello {
        let (reads_in, reads_out) = (16, 8);
        let own = Endpoint {
            number: 7,
            psn: 9,
            gid: [3; 16],
            lid: 0,
            mtu_bytes: 1024,
            reads_in,
            reads_out,
            credits: 0,
        };
        Hello::new(own, Key { offset: 0, bytes: 4096, address: u64::MAX, lkey: 5, rkey: 6 }, 4096)
    }

    #[test]
    fn two_sides_hear_what_the_other_is() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let other = Hello { number: 8, ..hello() };
        let there = thread::spawn(move || {
            let (stream, from) = listener.accept().unwrap();
            Wire::new(stream, from).unwrap().meet(&other).unwrap()
        });
        let mut wire = Wire::new(TcpStream::connect(at).unwrap(), at).unwrap();
        assert_eq!(wire.meet(&hello()).unwrap(), other);
        assert_eq!(there.join().unwrap(), hello());
        assert_eq!(hello().endpoint().gid, [3; 16]);
    }

    #[test]
    fn what_is_no_hello_is_told() {
        let good = serde_json::to_string(&hello()).unwrap();
        assert_eq!(read_hello(&good), Ok(hello()));
        for bad in ["", "GET / HTTP/1.1", "{}", "[1]", &good.replace("\"rkey\":6", "\"rkey\":-1")] {
            assert!(read_hello(bad).is_err(), "{bad}");
        }
        let other = read_hello(&good.replace("\"version\":1", "\"version\":2"));
        assert_eq!(other, Err("version is 2, but must be 1".to_string()));
        assert!(good.len() < 1_000, "{} bytes of a line", good.len());
    }
}
