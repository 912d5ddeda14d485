//! The thread that owns a card's slow path: it carries out what the control thread asks for, in
//! order, and passes on what the device says by itself.
//!
//! Calls into a device may take milliseconds, and registering a large memory a second: neither the
//! engine thread nor the control thread is to wait for them.
//!
//! **Invariants**: every order is answered once, under its token, in the order of asking; the
//! thread ends when nobody can ask any more, and with it end the queue pairs and registrations
//! that are left.
//! **Tests**: here, over the simulator for the work and a counting card for the thread.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use tracing::warn;

use crate::control::{CardAnswer, CardDone, CardOrder, CardWork};
use crate::fabric::qp::provider::{Created, Move, ProviderControl};
use crate::fabric::verbs::{AsyncEvent, VerbsControl};
use crate::shm::Mapping;

/// A card that says things by itself.
pub(super) trait Watched: ProviderControl<Memory = Arc<Mapping>> {
    /// Readable while there is something to hear.
    fn events(&self) -> BorrowedFd<'_>;

    /// The next thing that it says.
    fn next_event(&mut self) -> Option<AsyncEvent>;
}

impl Watched for VerbsControl {
    fn events(&self) -> BorrowedFd<'_> {
        Self::events(self)
    }

    fn next_event(&mut self) -> Option<AsyncEvent> {
        Self::next_event(self)
    }
}

/// Wakes whoever hears the answers.
pub(super) type Kick = Box<dyn Fn() + Send>;

/// What the card's thread owns.
pub(super) struct CardThread<C: ProviderControl> {
    control: C,
    orders: Receiver<CardOrder<C::Pair>>,
    /// Rung for every order, and when there will be none any more.
    bell: Arc<EventFd>,
    voice: Voice<C::Pair>,
}

/// The way back. When it ends, whoever listens is woken to notice.
struct Voice<P> {
    /// Taken only by `drop`.
    answers: Option<Sender<CardAnswer<P>>>,
    kick: Kick,
}

impl<P> Voice<P> {
    /// False if nobody listens.
    fn say(&self, token: u64, done: CardDone<P>) -> bool {
        let Some(answers) = &self.answers else { return false };
        answers.send(CardAnswer { token, done }).is_ok()
    }
}

impl<P> Drop for Voice<P> {
    fn drop(&mut self) {
        drop(self.answers.take());
        (self.kick)();
    }
}

impl<C: Watched> CardThread<C> {
    /// Makes what is to run on the thread.
    pub(super) fn new(
        control: C,
        orders: Receiver<CardOrder<C::Pair>>,
        bell: Arc<EventFd>,
        answers: Sender<CardAnswer<C::Pair>>,
        kick: Kick,
    ) -> Self {
        Self { control, orders, bell, voice: Voice { answers: Some(answers), kick } }
    }

    /// Works until nobody can ask any more.
    pub(super) fn run(mut self) {
        let mut watched = true;
        loop {
            match self.wait(watched) {
                Ok(sound) => watched &= sound,
                Err(errno) => {
                    // Without events the rest still works: completions tell of failures, too.
                    warn!(%errno, "cannot wait for the card's events; they are not heard any more");
                    watched = false;
                }
            }
            let ended = self.work();
            self.listen();
            if ended {
                return;
            }
        }
    }

    /// Waits for an order or an event; false if the device's descriptor is broken.
    fn wait(&self, watched: bool) -> Result<bool, Errno> {
        let mut both = [
            PollFd::new(self.bell.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.control.events(), PollFlags::POLLIN),
        ];
        let count = if watched { 2 } else { 1 };
        match poll(&mut both[..count], PollTimeout::NONE) {
            Err(Errno::EINTR) => return Ok(true),
            other => other?,
        };
        let woken = |at: usize| both[at].revents().unwrap_or(PollFlags::empty());
        if woken(0).contains(PollFlags::POLLIN) {
            let _ = self.bell.read();
        }
        Ok(!watched || woken(1).difference(PollFlags::POLLIN).is_empty())
    }

    /// Carries out all orders; true if there will be none any more.
    fn work(&mut self) -> bool {
        loop {
            match self.orders.try_recv() {
                Ok(CardOrder { token, work }) => {
                    let done = carry_out(&mut self.control, work);
                    self.voice.say(token, done);
                    (self.voice.kick)();
                }
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => return true,
            }
        }
    }

    fn listen(&mut self) {
        let mut heard = false;
        while let Some(event) = self.control.next_event() {
            heard |= self.voice.say(0, CardDone::Event(event));
        }
        if heard {
            (self.voice.kick)();
        }
    }
}

/// Does what is asked of a card.
pub(super) fn carry_out<C>(control: &mut C, work: CardWork<C::Pair>) -> CardDone<C::Pair>
where
    C: ProviderControl<Memory = Arc<Mapping>>,
{
    let done = match work {
        CardWork::Create { caps, settings } => control.create(caps).and_then(|made| {
            let Created { pair, number, caps } = made;
            match control.modify(number, &Move::Init(settings)) {
                Ok(()) => Ok(CardDone::Created(Created { pair, number, caps })),
                Err(error) => {
                    let _ = control.destroy(number, pair);
                    Err(error)
                }
            }
        }),
        CardWork::Endpoint { number, settings, credits } => {
            control.endpoint(number, &settings, credits).map(CardDone::Endpoint)
        }
        CardWork::Move { number, moves } => {
            moves.iter().try_for_each(|to| control.modify(number, to)).map(|()| CardDone::Moved)
        }
        CardWork::Destroy { number, pair } => {
            control.destroy(number, pair).map(|()| CardDone::Destroyed)
        }
        CardWork::Register { memory, access } => {
            control.register(&memory, access).map(CardDone::Registered)
        }
        CardWork::Deregister { id } => control.deregister(id).map(|()| CardDone::Deregistered),
    };
    done.unwrap_or_else(CardDone::Failed)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc::channel;
    use std::thread;

    use nix::sys::eventfd::EfdFlags;

    use super::*;
    use crate::control::CardOrders;
    use crate::fabric::qp::provider::Provider;
    use crate::fabric::qp::provider::{
        Access, Caps, DeviceLimits, Endpoint, Link, PairState, PathSettings, ProviderError,
        Registration,
    };
    use crate::fabric::qp::sim::{Net, SimConfig, SimControl, SimProvider};

    const CAPS: Caps = Caps { sends: 8, receives: 4, inline_bytes: 16 };
    const OWN: Access = Access { write: false, read: false, atomics: false };

    fn create() -> CardWork<u32> {
        CardWork::Create { caps: CAPS, settings: PathSettings::DEFAULT }
    }

    fn made(done: CardDone<u32>) -> Created<u32> {
        match done {
            CardDone::Created(made) => made,
            other => panic!("{other:?}"),
        }
    }

    fn device(completions: u32) -> (SimProvider, SimControl) {
        Net::new().device(SimConfig::DEFAULT, completions)
    }

    #[test]
    fn queue_pairs_are_made_joined_and_destroyed() {
        let net = Net::new();
        let (mut provider, mut control) = net.device(SimConfig::DEFAULT, 64);
        let ends = [0, 1].map(|rail| {
            let Created { pair, number, caps } = made(carry_out(&mut control, create()));
            assert_eq!(control.state(number).unwrap(), PairState::Init);
            assert_eq!((caps.sends, caps.receives), (8, 4));
            provider.adopt(rail, pair);
            let ask = CardWork::Endpoint { number, settings: PathSettings::DEFAULT, credits: 2 };
            match carry_out(&mut control, ask) {
                CardDone::Endpoint(end) => end,
                other => panic!("{other:?}"),
            }
        });
        assert_ne!(ends[0].psn, ends[1].psn);
        for (own, peer) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            let link = Link { own, peer, settings: PathSettings::DEFAULT };
            let moves = vec![Move::ReadyToReceive(link), Move::ReadyToSend(link)];
            let done = carry_out(&mut control, CardWork::Move { number: own.number, moves });
            assert!(matches!(done, CardDone::Moved), "{done:?}");
            assert_eq!(control.state(own.number).unwrap(), PairState::ReadyToSend);
        }
        for (rail, end) in [0, 1].into_iter().zip(ends) {
            let pair = provider.release(rail).unwrap();
            let done = carry_out(&mut control, CardWork::Destroy { number: end.number, pair });
            assert!(matches!(done, CardDone::Destroyed), "{done:?}");
            assert!(control.state(end.number).is_err(), "it is gone");
        }
    }

    #[test]
    fn the_first_move_that_fails_is_the_last() {
        let (_provider, mut control) = device(64);
        let Created { number, .. } = made(carry_out(&mut control, create()));
        let end = control.endpoint(number, &PathSettings::DEFAULT, 1).unwrap();
        let link = Link { own: end, peer: end, settings: PathSettings::DEFAULT };
        let moves = vec![Move::Error, Move::ReadyToSend(link), Move::Reset];
        let done = carry_out(&mut control, CardWork::Move { number, moves });
        assert!(matches!(done, CardDone::Failed(ProviderError::State { .. })), "{done:?}");
        assert_eq!(control.state(number).unwrap(), PairState::Error);
    }

    #[test]
    fn memory_is_registered_and_let_go() {
        let (_provider, mut control) = device(64);
        let memory = Arc::new(Mapping::anonymous(8192).unwrap());
        let work = CardWork::Register { memory: Arc::clone(&memory), access: OWN };
        let CardDone::Registered(Registration { id, keys }) = carry_out(&mut control, work) else {
            panic!("registered");
        };
        assert_eq!(keys.iter().map(|key| key.bytes).sum::<u64>(), 8192);
        assert!(Arc::strong_count(&memory) > 1, "the card holds it");
        let done = carry_out(&mut control, CardWork::Deregister { id });
        assert!(matches!(done, CardDone::Deregistered), "{done:?}");
        assert_eq!(Arc::strong_count(&memory), 1);
        let done = carry_out(&mut control, CardWork::Deregister { id });
        assert!(matches!(done, CardDone::Failed(ProviderError::Unknown { .. })), "{done:?}");
    }

    /// A card that only counts: what it was asked for, and what it says by itself.
    struct Counting {
        events: Arc<EventFd>,
        says: Arc<Mutex<VecDeque<AsyncEvent>>>,
        /// Queue pairs that are there.
        pairs: Arc<AtomicU32>,
        next: u32,
        refuses_init: bool,
    }

    impl Drop for Counting {
        fn drop(&mut self) {
            self.pairs.store(0, Ordering::SeqCst);
        }
    }

    impl ProviderControl for Counting {
        type Pair = u32;
        type Memory = Arc<Mapping>;

        fn limits(&self) -> DeviceLimits {
            SimConfig::DEFAULT.limits
        }

        fn create(&mut self, caps: Caps) -> Result<Created<u32>, ProviderError> {
            self.next += 1;
            self.pairs.fetch_add(1, Ordering::SeqCst);
            Ok(Created { pair: self.next, number: self.next, caps })
        }

        fn endpoint(
            &mut self,
            number: u32,
            _: &PathSettings,
            _: u32,
        ) -> Result<Endpoint, ProviderError> {
            Err(ProviderError::Unknown { what: "endpoint", number })
        }

        fn modify(&mut self, number: u32, _: &Move) -> Result<(), ProviderError> {
            let refusal = ProviderError::Unknown { what: "queue pair", number };
            if self.refuses_init { Err(refusal) } else { Ok(()) }
        }

        fn state(&mut self, _: u32) -> Result<PairState, ProviderError> {
            Ok(PairState::Init)
        }

        fn destroy(&mut self, number: u32, pair: u32) -> Result<(), ProviderError> {
            assert_eq!(number, pair);
            self.pairs.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }

        fn register(&mut self, _: &Arc<Mapping>, _: Access) -> Result<Registration, ProviderError> {
            Ok(Registration { id: 1, keys: Box::new([]) })
        }

        fn deregister(&mut self, _: u32) -> Result<(), ProviderError> {
            Ok(())
        }
    }

    impl Watched for Counting {
        fn events(&self) -> BorrowedFd<'_> {
            self.events.as_fd()
        }

        fn next_event(&mut self) -> Option<AsyncEvent> {
            let next = self.says.lock().unwrap().pop_front();
            if next.is_none() {
                let _ = self.events.read();
            }
            next
        }
    }

    #[test]
    fn a_queue_pair_that_cannot_be_brought_to_init_is_destroyed() {
        let pairs = Arc::new(AtomicU32::new(0));
        let events = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
        let (says, counted) = (Arc::default(), Arc::clone(&pairs));
        let mut card = Counting { events, says, pairs: counted, next: 0, refuses_init: true };
        let done = carry_out(&mut card, create());
        assert!(matches!(done, CardDone::Failed(ProviderError::Unknown { .. })), "{done:?}");
        assert_eq!(pairs.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn the_thread_answers_in_order_passes_events_on_and_ends_with_its_last_asker() {
        let flags = EfdFlags::EFD_NONBLOCK;
        let bell = Arc::new(EventFd::from_flags(flags).unwrap());
        let events = Arc::new(EventFd::from_flags(flags).unwrap());
        let says = Arc::new(Mutex::new(VecDeque::new()));
        let pairs = Arc::new(AtomicU32::new(0));
        let kicks = Arc::new(AtomicU32::new(0));
        let card = Counting {
            events: Arc::clone(&events),
            says: Arc::clone(&says),
            pairs: Arc::clone(&pairs),
            next: 0,
            refuses_init: false,
        };
        let (sender, orders) = channel();
        let asks = CardOrders::new(sender, Arc::clone(&bell));
        let (sender, answers) = channel();
        let counted = Arc::clone(&kicks);
        let kick = Box::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let thread = CardThread::new(card, orders, bell, sender, kick);
        let thread = thread::spawn(move || thread.run());

        for token in 1..=3 {
            asks.send(CardOrder { token, work: create() }).unwrap();
        }
        for token in 1..=3 {
            let answer: CardAnswer<u32> = answers.recv().unwrap();
            assert_eq!((answer.token, u64::from(made(answer.done).number)), (token, token));
        }
        says.lock().unwrap().extend([AsyncEvent::PairFailed(2), AsyncEvent::PortDown(1)]);
        events.write(1).unwrap();
        for expected in [AsyncEvent::PairFailed(2), AsyncEvent::PortDown(1)] {
            let answer = answers.recv().unwrap();
            assert_eq!(answer.token, 0);
            assert!(matches!(answer.done, CardDone::Event(event) if event == expected));
        }
        assert_eq!(pairs.load(Ordering::SeqCst), 3);
        let before = kicks.load(Ordering::SeqCst);
        drop(asks);
        thread.join().unwrap();
        assert_eq!(pairs.load(Ordering::SeqCst), 0, "what was left ended with the card");
        assert!(answers.recv().is_err(), "nobody will answer any more");
        assert!(kicks.load(Ordering::SeqCst) > before, "whoever listens is told");
    }
}
