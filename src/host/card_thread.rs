//! The thread that owns the cards' slow path: it carries out what the control thread asks for, in
//! order, and passes on what the devices say by themselves.
//!
//! Calls into a device may take milliseconds, and registering a large memory a second: neither the
//! engine thread nor the control thread is to wait for them.
//!
//! Memory is registered with every card, and known by one id. A device that has failed for good is
//! left out of that from then on: the others go on without it.
//!
//! **Invariants**: every order is answered once, under its token, in the order of asking; memory
//! that one card refuses is registered with none; the thread ends when nobody can ask any more,
//! and with it end the queue pairs and registrations that are left.
//! **Tests**: here, over the simulator for the work and a counting card for the thread.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use tracing::warn;

use crate::control::{Address, CardAnswer, CardDone, CardOrder, CardWork, PairWork, Registered};
use crate::fabric::qp::provider::{Access, Created, Move, ProviderControl, ProviderError};
use crate::fabric::qp::{CARDS_MAX, CardKeys};
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

/// Reads which addresses a card's port has: those that a peer may be reached from, best first.
pub(super) type Look = Box<dyn Fn(u8) -> Vec<Address> + Send>;

/// What the card's thread owns.
pub(super) struct CardThread<C: ProviderControl> {
    cards: Cards<C>,
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
        (cards, look): (Vec<C>, Look),
        orders: Receiver<CardOrder<C::Pair>>,
        bell: Arc<EventFd>,
        answers: Sender<CardAnswer<C::Pair>>,
        kick: Kick,
    ) -> Self {
        let voice = Voice { answers: Some(answers), kick };
        Self { cards: Cards::new(cards, look), orders, bell, voice }
    }

    /// Works until nobody can ask any more.
    pub(super) fn run(mut self) {
        let mut watched = [true; CARDS_MAX];
        loop {
            if let Err(errno) = self.wait(&mut watched) {
                // Without events the rest still works: completions tell of failures, too.
                warn!(%errno, "cannot wait for the cards' events; they are not heard any more");
                watched = [false; CARDS_MAX];
            }
            let ended = self.work();
            self.listen();
            if ended {
                return;
            }
        }
    }

    /// Waits for an order or an event. A device whose descriptor is broken is watched no more.
    fn wait(&self, watched: &mut [bool; CARDS_MAX]) -> Result<(), Errno> {
        let cards = &self.cards.cards;
        let heard: Vec<usize> = (0..cards.len()).filter(|card| watched[*card]).collect();
        let mut all = vec![PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)];
        all.extend(heard.iter().map(|card| PollFd::new(cards[*card].events(), PollFlags::POLLIN)));
        match poll(&mut all, PollTimeout::NONE) {
            Err(Errno::EINTR) => return Ok(()),
            other => other?,
        };
        let woken = |at: usize| all[at].revents().unwrap_or(PollFlags::empty());
        if woken(0).contains(PollFlags::POLLIN) {
            let _ = self.bell.read();
        }
        for (at, card) in heard.into_iter().enumerate() {
            watched[card] = woken(at + 1).difference(PollFlags::POLLIN).is_empty();
        }
        Ok(())
    }

    /// Carries out all orders; true if there will be none any more.
    fn work(&mut self) -> bool {
        loop {
            match self.orders.try_recv() {
                Ok(CardOrder { token, work }) => {
                    let done = self.cards.carry_out(work);
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
        for card in 0..self.cards.cards.len() {
            while let Some(event) = self.cards.cards[card].next_event() {
                self.cards.failed[card] |= event == AsyncEvent::DeviceFailed;
                let number = u8::try_from(card).unwrap_or(u8::MAX);
                heard |= self.voice.say(0, CardDone::Event(number, event));
            }
        }
        if heard {
            (self.voice.kick)();
        }
    }
}

/// All cards, and what is registered with them.
pub(super) struct Cards<C> {
    cards: Vec<C>,
    /// Devices that have failed for good.
    failed: [bool; CARDS_MAX],
    /// What each card calls a registration, by our id.
    registrations: BTreeMap<u32, [Option<u32>; CARDS_MAX]>,
    next_id: u32,
    look: Look,
}

impl<C: ProviderControl<Memory = Arc<Mapping>>> Cards<C> {
    pub(super) fn new(cards: Vec<C>, look: Look) -> Self {
        assert!((1..=CARDS_MAX).contains(&cards.len()), "one to {CARDS_MAX} cards");
        let failed = [false; CARDS_MAX];
        Self { cards, failed, registrations: BTreeMap::new(), next_id: 1, look }
    }

    /// Does what is asked of the cards.
    pub(super) fn carry_out(&mut self, work: CardWork<C::Pair>) -> CardDone<C::Pair> {
        let done = match work {
            CardWork::Pair { card, work } => match self.cards.get_mut(usize::from(card)) {
                Some(control) => pair_work(control, work),
                None => Err(ProviderError::Unknown { what: "card", number: card.into() }),
            },
            CardWork::Register { memory, access } => {
                self.register(&memory, access).map(CardDone::Registered)
            }
            CardWork::Deregister { id } => self.deregister(id).map(|()| CardDone::Deregistered),
            CardWork::Addresses { card } => Ok(CardDone::Addresses((self.look)(card))),
        };
        done.unwrap_or_else(CardDone::Failed)
    }

    fn register(
        &mut self,
        memory: &Arc<Mapping>,
        access: Access,
    ) -> Result<Registered, ProviderError> {
        let (mut ids, mut keys) = ([None; CARDS_MAX], CardKeys::default());
        // With none left, the failure of one of them says why.
        let all_failed = self.failed[..self.cards.len()].iter().all(|failed| *failed);
        for card in 0..self.cards.len() {
            if self.failed[card] && !all_failed {
                continue;
            }
            match self.cards[card].register(memory, access) {
                Ok(made) => {
                    ids[card] = Some(made.id);
                    keys.put(u8::try_from(card).unwrap_or(u8::MAX), made.keys);
                }
                Err(error) => {
                    let _ = self.withdraw(&mut ids);
                    return Err(error);
                }
            }
        }
        let id = self.next_id;
        self.next_id += 1;
        self.registrations.insert(id, ids);
        Ok(Registered { id, keys })
    }

    fn deregister(&mut self, id: u32) -> Result<(), ProviderError> {
        let unknown = ProviderError::Unknown { what: "registration", number: id };
        let mut ids = self.registrations.remove(&id).ok_or(unknown)?;
        let outcome = self.withdraw(&mut ids);
        if ids.iter().any(Option::is_some) {
            self.registrations.insert(id, ids);
        }
        outcome
    }

    /// Ends what each card has of a registration; what one refuses stays, and the first refusal is
    /// told.
    fn withdraw(&mut self, ids: &mut [Option<u32>; CARDS_MAX]) -> Result<(), ProviderError> {
        let mut outcome = Ok(());
        for (control, place) in self.cards.iter_mut().zip(ids) {
            let Some(id) = *place else { continue };
            match control.deregister(id) {
                Ok(()) => *place = None,
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }
}

/// Does what is asked about a card's queue pair.
fn pair_work<C: ProviderControl>(
    control: &mut C,
    work: PairWork<C::Pair>,
) -> Result<CardDone<C::Pair>, ProviderError> {
    match work {
        PairWork::Create { caps, settings } => {
            let Created { pair, number, caps } = control.create(caps)?;
            match control.modify(number, &Move::Init(settings)) {
                Ok(()) => Ok(CardDone::Created(Created { pair, number, caps })),
                Err(error) => {
                    let _ = control.destroy(number, pair);
                    Err(error)
                }
            }
        }
        PairWork::Endpoint { number, settings, credits } => {
            control.endpoint(number, &settings, credits).map(CardDone::Endpoint)
        }
        PairWork::Move { number, moves } => {
            moves.iter().try_for_each(|to| control.modify(number, to)).map(|()| CardDone::Moved)
        }
        PairWork::Destroy { number, pair } => {
            control.destroy(number, pair).map(|()| CardDone::Destroyed)
        }
    }
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
        Caps, DeviceLimits, Endpoint, Key, Link, PairState, PathSettings, Registration,
    };
    use crate::fabric::qp::sim::{Net, SimConfig, SimControl, SimProvider};

    const CAPS: Caps = Caps { sends: 8, receives: 4, inline_bytes: 16, ranges: 1 };
    const OWN: Access = Access { write: false, read: false, atomics: false };

    fn no_addresses() -> Look {
        Box::new(|_| Vec::new())
    }

    fn create() -> PairWork<u32> {
        PairWork::Create { caps: CAPS, settings: PathSettings::DEFAULT }
    }

    fn carry_out<C: ProviderControl<Pair = u32>>(
        control: &mut C,
        work: PairWork<u32>,
    ) -> CardDone<u32> {
        pair_work(control, work).unwrap_or_else(CardDone::Failed)
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
            let ask = PairWork::Endpoint { number, settings: PathSettings::DEFAULT, credits: 2 };
            match carry_out(&mut control, ask) {
                CardDone::Endpoint(end) => end,
                other => panic!("{other:?}"),
            }
        });
        assert_ne!(ends[0].psn, ends[1].psn);
        for (own, peer) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            let link = Link { own, peer, settings: PathSettings::DEFAULT };
            let moves = vec![Move::ReadyToReceive(link), Move::ReadyToSend(link)];
            let done = carry_out(&mut control, PairWork::Move { number: own.number, moves });
            assert!(matches!(done, CardDone::Moved), "{done:?}");
            assert_eq!(control.state(own.number).unwrap(), PairState::ReadyToSend);
        }
        for (rail, end) in [0, 1].into_iter().zip(ends) {
            let pair = provider.release(rail).unwrap();
            let done = carry_out(&mut control, PairWork::Destroy { number: end.number, pair });
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
        let done = carry_out(&mut control, PairWork::Move { number, moves });
        assert!(matches!(done, CardDone::Failed(ProviderError::State { .. })), "{done:?}");
        assert_eq!(control.state(number).unwrap(), PairState::Error);
    }

    #[test]
    fn memory_is_registered_with_every_card_and_let_go() {
        let net = Net::new();
        let cards = [(); 2].map(|()| net.device(SimConfig::DEFAULT, 64).1);
        let mut cards = Cards::new(cards.into(), no_addresses());
        let memory = Arc::new(Mapping::anonymous(8192).unwrap());
        let work = CardWork::Register { memory: Arc::clone(&memory), access: OWN };
        let CardDone::Registered(Registered { id, keys }) = cards.carry_out(work) else {
            panic!("registered");
        };
        let bytes = |card| keys.of(card).iter().map(|key| key.bytes).sum::<u64>();
        assert_eq!([0, 1, 2].map(bytes), [8192, 8192, 0]);
        assert!(Arc::strong_count(&memory) > 2, "both hold it");
        let done = cards.carry_out(CardWork::Deregister { id });
        assert!(matches!(done, CardDone::Deregistered), "{done:?}");
        assert_eq!(Arc::strong_count(&memory), 1);
        let done = cards.carry_out(CardWork::Deregister { id });
        assert!(matches!(done, CardDone::Failed(ProviderError::Unknown { .. })), "{done:?}");
    }

    #[test]
    fn what_one_card_refuses_is_registered_with_none_and_a_failed_one_is_left_out() {
        let register = || {
            let memory = Arc::new(Mapping::anonymous(8192).unwrap());
            CardWork::Register { memory, access: OWN }
        };
        let counted = [(); 3].map(|()| Arc::new(AtomicU32::new(0)));
        let mut cards = Cards::new(
            counted.iter().map(|count| Counting::new(Arc::clone(count))).collect(),
            no_addresses(),
        );
        let regions = || [0, 1, 2].map(|at| counted[at].load(Ordering::SeqCst));
        cards.cards[1].refuses = true;
        let done = cards.carry_out(register());
        assert!(matches!(done, CardDone::Failed(ProviderError::Unknown { .. })), "{done:?}");
        assert_eq!(regions(), [0; 3]);
        cards.failed[1] = true;
        let CardDone::Registered(Registered { id, keys }) = cards.carry_out(register()) else {
            panic!("registered with those that are left");
        };
        assert_eq!(regions(), [1, 0, 1]);
        assert!(!keys.of(0).is_empty() && keys.of(1).is_empty() && !keys.of(2).is_empty());
        let done = cards.carry_out(CardWork::Deregister { id });
        assert!(matches!(done, CardDone::Deregistered), "{done:?}");
        assert_eq!(regions(), [0; 3]);
        // Where none is left, what a card says is the answer.
        cards.failed = [true; CARDS_MAX];
        let done = cards.carry_out(register());
        assert!(matches!(done, CardDone::Failed(ProviderError::Unknown { .. })), "{done:?}");
        assert_eq!(regions(), [0; 3]);
    }

    #[test]
    fn work_is_done_on_the_card_that_is_named() {
        let counted = [(); 2].map(|()| Arc::new(AtomicU32::new(0)));
        let mut cards = Cards::new(
            counted.iter().map(|count| Counting::new(Arc::clone(count))).collect(),
            no_addresses(),
        );
        let done = cards.carry_out(CardWork::Pair { card: 1, work: create() });
        assert_eq!(made(done).number, 1);
        assert_eq!([0, 1].map(|at| counted[at].load(Ordering::SeqCst)), [0, 1]);
        let done = cards.carry_out(CardWork::Pair { card: 2, work: create() });
        assert!(matches!(done, CardDone::Failed(ProviderError::Unknown { .. })), "{done:?}");
        let address = Address { gid_index: 3, gid: [7; 16] };
        cards.look = Box::new(move |card| vec![address; usize::from(card)]);
        let CardDone::Addresses(found) = cards.carry_out(CardWork::Addresses { card: 1 }) else {
            panic!("not looked at")
        };
        assert_eq!(found, [address]);
    }

    /// A card that only counts: what it was asked for, and what it says by itself.
    struct Counting {
        events: Arc<EventFd>,
        says: Arc<Mutex<VecDeque<AsyncEvent>>>,
        /// Queue pairs and registrations that are there.
        there: Arc<AtomicU32>,
        next: u32,
        refuses: bool,
    }

    impl Counting {
        fn new(there: Arc<AtomicU32>) -> Self {
            let events = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
            Self { events, says: Arc::default(), there, next: 0, refuses: false }
        }
    }

    impl Drop for Counting {
        fn drop(&mut self) {
            self.there.store(0, Ordering::SeqCst);
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
            self.there.fetch_add(1, Ordering::SeqCst);
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
            if self.refuses { Err(refusal) } else { Ok(()) }
        }

        fn state(&mut self, _: u32) -> Result<PairState, ProviderError> {
            Ok(PairState::Init)
        }

        fn destroy(&mut self, number: u32, pair: u32) -> Result<(), ProviderError> {
            assert_eq!(number, pair);
            self.there.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }

        fn register(
            &mut self,
            memory: &Arc<Mapping>,
            _: Access,
        ) -> Result<Registration, ProviderError> {
            self.next += 1;
            let (id, bytes) = (self.next, memory.bytes());
            if self.refuses {
                return Err(ProviderError::Unknown { what: "memory", number: id });
            }
            self.there.fetch_add(1, Ordering::SeqCst);
            let key = Key { offset: 0, bytes, address: 4096, lkey: id, rkey: id };
            Ok(Registration { id, keys: Box::new([key]) })
        }

        fn deregister(&mut self, _: u32) -> Result<(), ProviderError> {
            self.there.fetch_sub(1, Ordering::SeqCst);
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
        let mut card = Counting::new(Arc::clone(&pairs));
        card.refuses = true;
        let done = carry_out(&mut card, create());
        assert!(matches!(done, CardDone::Failed(ProviderError::Unknown { .. })), "{done:?}");
        assert_eq!(pairs.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn the_thread_answers_in_order_passes_events_on_and_ends_with_its_last_asker() {
        let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
        let pairs = Arc::new(AtomicU32::new(0));
        let kicks = Arc::new(AtomicU32::new(0));
        let cards = [(); 2].map(|()| Counting::new(Arc::clone(&pairs)));
        let voices = cards.each_ref().map(|it| (Arc::clone(&it.events), Arc::clone(&it.says)));
        let (sender, orders) = channel();
        let asks = CardOrders::new(sender, Arc::clone(&bell));
        let (sender, answers) = channel();
        let counted = Arc::clone(&kicks);
        let kick = Box::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let thread = CardThread::new((cards.into(), no_addresses()), orders, bell, sender, kick);
        let thread = thread::spawn(move || thread.run());

        for token in 1..=3 {
            asks.send(CardOrder { token, work: CardWork::Pair { card: 1, work: create() } })
                .unwrap();
        }
        for token in 1..=3 {
            let answer: CardAnswer<u32> = answers.recv().unwrap();
            assert_eq!((answer.token, u64::from(made(answer.done).number)), (token, token));
        }
        for (card, (events, says)) in (0..).zip(&voices) {
            says.lock().unwrap().extend([AsyncEvent::PairFailed(2), AsyncEvent::PortDown(1)]);
            events.write(1).unwrap();
            for expected in [AsyncEvent::PairFailed(2), AsyncEvent::PortDown(1)] {
                let answer = answers.recv().unwrap();
                assert_eq!(answer.token, 0);
                let CardDone::Event(of, event) = answer.done else { panic!("{:?}", answer.done) };
                assert_eq!((of, event), (card, expected));
            }
        }
        // A device that failed gets no more memory.
        let (events, says) = &voices[0];
        says.lock().unwrap().push_back(AsyncEvent::DeviceFailed);
        events.write(1).unwrap();
        drop(answers.recv().unwrap());
        pairs.store(0, Ordering::SeqCst);
        let memory = Arc::new(Mapping::anonymous(4096).unwrap());
        asks.send(CardOrder { token: 4, work: CardWork::Register { memory, access: OWN } })
            .unwrap();
        let CardDone::Registered(Registered { keys, .. }) = answers.recv().unwrap().done else {
            panic!("registered with the other")
        };
        assert!(keys.of(0).is_empty() && !keys.of(1).is_empty());

        let before = kicks.load(Ordering::SeqCst);
        drop(asks);
        thread.join().unwrap();
        assert_eq!(pairs.load(Ordering::SeqCst), 0, "what was left ended with the cards");
        assert!(answers.recv().is_err(), "nobody will answer any more");
        assert!(kicks.load(Ordering::SeqCst) > before, "whoever listens is told");
    }
}
