//! The near end of a demo between hosts: the sender, whose partner is the far end's mailbox.

use std::time::Duration;

use indicatif::ProgressBar;
use verbring::abi::FABRIC_VERBS;
use verbring::{Import, Session};

use super::outcome::{Far, Outcome, Pass};
use super::sender::{Line, Partner, Passed};
use super::{EXPORT_NAME, SILENCE_MAX, Source, WINDOW_BYTES, digest_text};
use crate::cli::afar::{self, Body, FarArgs, Mailbox, attach};
use crate::cli::carried::Carried;
use crate::cli::{Failure, complain};

/// Sends a file to the offer at `url`, by the engine of this host.
pub(super) fn run(
    far: &FarArgs,
    url: &str,
    source: &Source,
    seconds: u32,
    bar: ProgressBar,
) -> Result<Outcome, Failure> {
    let (socket, secret) = (far.socket()?, far.secret()?);
    let session = attach(&socket)?;
    let import = afar::import(&session, url, EXPORT_NAME, far.uid(), &secret)?;
    send(&session, &import, FABRIC_VERBS, &Sending { url, source, seconds, bar })
}

/// What is sent, and to whom.
pub(super) struct Sending<'a> {
    pub(super) url: &'a str,
    pub(super) source: &'a Source,
    pub(super) seconds: u32,
    pub(super) bar: ProgressBar,
}

/// Sends to what is offered; `fabric` must carry every op.
pub(super) fn send(
    session: &Session,
    offered: &Import,
    fabric: u8,
    sending: &Sending<'_>,
) -> Result<Outcome, Failure> {
    let (window, mailbox) = Mailbox::open(session, offered, fabric)?;
    if window.bytes() != WINDOW_BYTES {
        let text = format!(
            "{} bytes are offered, but must be {WINDOW_BYTES} for a demo: both ends must be of \
             the same version",
            window.bytes()
        );
        return Err(Failure::Failed(text));
    }
    let line = Line::open(session, window, Some(fabric))?;
    let mut beyond = Beyond { mailbox, last: false, received: None, outcome: None, sending };
    let line = line.send(&sending.source.path, sending.seconds, &mut beyond)?;
    let Beyond { mut mailbox, outcome, .. } = beyond;
    let outcome = outcome.ok_or_else(|| Failure::Failed("nothing was sent".to_string()));
    let mut outcome = outcome?;
    // All is known by now: whether the far end hears that it may go changes nothing of it.
    if let Err(Failure::Failed(text) | Failure::Usage(text)) = mailbox.say(Body::Done) {
        complain(&format!("the far end was not told that this is all: {text}"));
    }
    if let Some(far) = &mut outcome.peer {
        far.mailbox = mailbox.carried().clone();
    }
    line.close()?;
    mailbox.close()?;
    Ok(outcome)
}

/// The far end, as the sender's partner.
struct Beyond<'a> {
    mailbox: Mailbox,
    /// What was written last is the last of the file.
    last: bool,
    received: Option<[u8; 32]>,
    /// Of all passes so far.
    outcome: Option<Outcome>,
    sending: &'a Sending<'a>,
}

impl Partner for Beyond<'_> {
    fn moved(&mut self, bytes: u64) -> Result<(), Failure> {
        self.sending.bar.inc(bytes);
        Ok(())
    }

    fn written(&mut self, bytes: u64, last: bool) -> Result<(), Failure> {
        self.last = last;
        self.mailbox.say(Body::Look { bytes, last })
    }

    fn seen(&mut self) -> Result<(), Failure> {
        self.received = match (self.mailbox.hear(PATIENCE)?, self.last) {
            (Body::Seen, false) => None,
            (Body::Digest(sum), true) => Some(sum),
            (answer, _) => {
                let text = format!("the far end answers {answer:?}, which was not asked");
                return Err(Failure::Failed(text));
            }
        };
        Ok(())
    }

    fn passed(&mut self, pass: Passed) -> Result<bool, Failure> {
        let Passed { bytes, sha256_sent, sha256_read_back, so_far } = pass;
        let sha256_received = self.received.take().map(|sum| digest_text(&sum)).unwrap_or_default();
        let pass = Pass { bytes, sha256_sent, sha256_received, sha256_read_back };
        let matches = pass.mismatch().is_none();
        let (passes, total) = self.outcome.take().map_or((0, 0), |it| (it.passes, it.bytes));
        let url = self.sending.url.to_string();
        self.outcome = Some(Outcome {
            file: self.sending.source.label.clone(),
            peer: Some(Far { url, mailbox: Carried::default() }),
            pass,
            passes: passes + 1,
            bytes: total + bytes,
            sent: so_far,
        });
        Ok(matches)
    }
}

/// A window is digested in much less, unless something hangs.
const PATIENCE: Duration = SILENCE_MAX;

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::PathBuf;
    use std::sync::mpsc;
    use std::thread;

    use verbring::abi::FABRIC_LOCAL;
    use verbring::{Engine, Rights, RingOptions, Write};

    use super::super::offer;
    use super::*;
    use crate::cli::afar::Offer;

    /// Both ends at one engine, whose local fabric stands in for queue pairs.
    struct Both {
        engine: Engine,
        offer: Offer,
        stop: (mpsc::Sender<()>, mpsc::Receiver<()>),
    }

    impl Both {
        fn start() -> Self {
            let mut config = verbring::host::Config::default();
            config.verbs = verbring::host::VerbsUse::Off;
            let engine = Engine::builder().config(config).spawn().unwrap();
            let session = engine.connect().unwrap();
            let rights = Rights::READ | Rights::WRITE;
            let offer = Offer::make(&session, EXPORT_NAME, WINDOW_BYTES, rights).unwrap();
            Self { engine, offer, stop: mpsc::channel() }
        }

        fn import(&self) -> (Session, Import) {
            let session = self.engine.connect().unwrap();
            let secret = self.offer.to_json()["secret"].as_str().unwrap().parse().unwrap();
            let import = session.import(EXPORT_NAME, None, &secret).unwrap();
            (session, import)
        }
    }

    /// A file that goes with the value.
    struct Content(PathBuf, Source);

    impl Content {
        fn new(name: &str, bytes: usize) -> Self {
            let name = format!("verbring-peer-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let mut word = 1u64;
            let mut next = || {
                word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                word.to_be_bytes()[0]
            };
            let content: Vec<u8> = (0..bytes).map(|_| next()).collect();
            std::fs::File::create(&path).unwrap().write_all(&content).unwrap();
            let source = Source::find(Some(&path)).unwrap();
            Self(path, source)
        }

        fn sending(&self) -> Sending<'_> {
            let bar = ProgressBar::hidden();
            Sending { url: "verbring://far:1", source: &self.1, seconds: 0, bar }
        }
    }

    impl Drop for Content {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn failed<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
        match result.unwrap_err() {
            Failure::Failed(text) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_of_several_windows_is_digested_at_both_ends_and_the_offer_ends_with_it() {
        let content = Content::new("whole", (17 << 20) + 5);
        let mut both = Both::start();
        let (session, import) = both.import();
        let stop = both.stop.1;
        let far = thread::spawn(move || offer::serve(&mut both.offer, &stop).unwrap());
        let outcome = send(&session, &import, FABRIC_LOCAL, &content.sending()).unwrap();
        let received = far.join().unwrap();
        assert_eq!(outcome.pass.mismatch(), None);
        assert_eq!(received.sha256.as_deref(), Some(outcome.pass.sha256_sent.as_str()));
        assert_eq!((received.passes, received.bytes, received.done), (1, (17 << 20) + 5, true));
        let told = outcome.to_json();
        assert_eq!(told["peer"], "verbring://far:1");
        let carried = told["carried"].as_array().unwrap();
        assert_eq!((carried.len(), &carried[0]["fabric"]), (1, &"local".into()));
        // Three windows, each an order and at least one look for its answer; then the farewell.
        let mailbox = told["mailbox_ops"].as_u64().unwrap();
        assert!(mailbox >= 7, "{told}");
        assert_eq!(carried[0]["ops"].as_u64().unwrap(), told["ops"].as_u64().unwrap() + mailbox);
        assert!(outcome.to_text().contains("to verbring://far:1 and back"));
    }

    #[test]
    fn ops_by_another_fabric_than_was_required_are_a_failure() {
        let content = Content::new("fabric", 100);
        let both = Both::start();
        let (session, import) = both.import();
        let text = failed(send(&session, &import, FABRIC_VERBS, &content.sending()));
        assert!(text.contains("went by fabric local, but must by verbs"), "{text}");
    }

    #[test]
    fn orders_of_no_sense_are_refused_and_the_next_sender_is_served() {
        let content = Content::new("hostile", 3 << 20);
        let mut both = Both::start();
        let (session, import) = both.import();
        let (_keep, stop) = both.stop;
        let far = thread::spawn(move || offer::serve(&mut both.offer, &stop).unwrap());
        for body in [
            Body::Look { bytes: WINDOW_BYTES + 1, last: true },
            Body::Look { bytes: u64::MAX, last: false },
            Body::Seen,
            Body::Refused,
            Body::Digest([1; 32]),
        ] {
            let (_, mut mailbox) = Mailbox::open(&session, &import, FABRIC_LOCAL).unwrap();
            mailbox.say(body).unwrap();
            let text = failed(mailbox.hear(PATIENCE));
            assert!(text.contains("refuses the order"), "{body:?}: {text}");
        }
        // An order that was never followed by its sender leaves nothing in the next one's digest.
        let (_, mut mailbox) = Mailbox::open(&session, &import, FABRIC_LOCAL).unwrap();
        mailbox.say(Body::Look { bytes: 4096, last: false }).unwrap();
        assert_eq!(mailbox.hear(PATIENCE).unwrap(), Body::Seen);
        let outcome = send(&session, &import, FABRIC_LOCAL, &content.sending()).unwrap();
        assert_eq!(outcome.pass.mismatch(), None);
        assert_eq!(far.join().unwrap().passes, 1);
    }

    #[test]
    fn a_mailbox_of_random_bytes_and_an_offer_of_another_size_are_told() {
        let mut both = Both::start();
        let (session, import) = both.import();
        let mut ring = session.ring(RingOptions::new(2, 2)).unwrap();
        let region = session.alloc(4096).unwrap();
        let mut lease = region.lend(0..96).unwrap();
        lease.fill(0xa5);
        ring.push(Write::new(lease, import.at(WINDOW_BYTES))).unwrap();
        ring.submit_and_wait(1, None).unwrap();
        ring.reap().unwrap().unwrap().result.unwrap();
        assert_eq!(both.offer.next(Duration::ZERO).unwrap(), None);
        // Nobody answers, and that has an end.
        let (_, mut mailbox) = Mailbox::open(&session, &import, FABRIC_LOCAL).unwrap();
        mailbox.say(Body::Done).unwrap();
        let text = failed(mailbox.hear(Duration::ZERO));
        assert!(text.contains("has not answered for 0 s"), "{text}");

        let content = Content::new("size", 1);
        let secret = region.export("small", Rights::ALL).unwrap();
        let small = session.import("small", None, &secret).unwrap();
        let text = failed(send(&session, &small, FABRIC_LOCAL, &content.sending()));
        assert!(text.contains("no more than a mailbox"), "{text}");
        let region = session.alloc(1 << 16).unwrap();
        let secret = region.export("other", Rights::ALL).unwrap();
        let other = session.import("other", None, &secret).unwrap();
        let text = failed(send(&session, &other, FABRIC_LOCAL, &content.sending()));
        assert!(text.contains("but must be 8388608 for a demo"), "{text}");
    }
}
