//! Rails of two engines, joined by their control: over the simulator, with messages, card work,
//! wishes and news all under way for a while of their own, and with everything that may fail
//! failing at any time.
//!
//! Held at the end, once faults have ceased: each rail is ready at both ends and carries bytes and
//! notifications both ways, or is dead at both and gives its queue pair back; every request that
//! was taken has ended once.

use std::collections::VecDeque;
use std::sync::Arc;

use super::joint::{Act, Job, Joint, Say, Step};
use crate::fabric::conformance::{FAR, NEAR, request};
use crate::fabric::qp::provider::{Access, Key, Move, PairState, PathSettings, ProviderControl};
use crate::fabric::qp::sim::{Net, SimConfig, SimControl, SimProvider};
use crate::fabric::qp::{
    Ask, CardKeys, Config, Memory, News, RailState, Rails, Recovery, Told, Wish,
};
use crate::fabric::{Arrival, Done, Fabric, REQUEST_NOTIFY, Request, Verb};
use crate::seeds::{Random, each_seed};
use crate::shm::Mapping;

const CONFIG: Config = Config {
    fabric: 9,
    rails_max: 4,
    depth: 8,
    receives: 4,
    inline_bytes: 64,
    signal_every: 4,
    message_bytes_max: 1 << 30,
    merge_bytes_max: 0,
    regions_max: 4,
    attempts_max: 3,
    stuck_ns: 5_000_000,
    grace_ns: 20_000,
    drain_ns: 10_000_000,
    lost_ns: 2_000_000_000,
    recovery: Recovery::DEFAULT,
};
const RAIL: u16 = 1;
const BYTES: u64 = 1 << 16;

/// A queue whose entries arrive in order, each some time after it was sent.
#[derive(Debug)]
struct Pipe<T> {
    under_way: VecDeque<(u64, T)>,
    latency_ns: u64,
}

impl<T> Pipe<T> {
    fn new(latency_ns: u64) -> Self {
        Self { under_way: VecDeque::new(), latency_ns }
    }

    fn send(&mut self, now_ns: u64, random: &mut Random, entry: T) {
        let due_ns = now_ns + random.below(self.latency_ns + 1);
        let due_ns = self.under_way.back().map_or(due_ns, |(last, _)| due_ns.max(*last));
        self.under_way.push_back((due_ns, entry));
    }

    fn receive(&mut self, now_ns: u64) -> Option<T> {
        self.under_way.front().filter(|(due_ns, _)| *due_ns <= now_ns)?;
        self.under_way.pop_front().map(|(_, entry)| entry)
    }
}

/// What goes to the fabric of one end.
#[derive(Debug)]
enum Order {
    Adopt(u32, crate::fabric::qp::provider::Caps),
    Tell(Told),
    Release,
}

/// One engine's end.
struct End {
    joint: Joint,
    rails: Rails<SimProvider>,
    control: SimControl,
    card: Pipe<(Step, Job)>,
    orders: Pipe<Order>,
    wishes: Pipe<Wish>,
    /// To the other end; `None` says that this one is lost and hushed.
    wire: Pipe<Option<Say>>,
    closed: bool,
    bye_said: bool,
    /// Its queue pair came to RTS in this life.
    sent: bool,
    taken: u64,
    ended: u64,
    arrived: u64,
    next: u64,
}

struct World {
    net: Net,
    random: Random,
    ends: Vec<End>,
    /// Per thousand: card work that fails though it could be done.
    clumsy: u64,
}

fn exported(keys: &[Key]) -> Box<[Key]> {
    keys.iter().map(|key| Key { lkey: 0, ..*key }).collect()
}

impl World {
    /// Two engines, or one whose rail leads to itself.
    fn new(seed: u64, engines: usize) -> Self {
        let mut random = Random::new(seed);
        let net = Net::new();
        let latency = [0, 300, 5_000, 100_000];
        let mut held = Vec::new();
        for _ in 0..engines {
            let (provider, mut control) = net.device(SimConfig::DEFAULT, CONFIG.completions());
            let mapping = Arc::new(Mapping::anonymous(BYTES).unwrap());
            let access = Access { write: true, read: true, atomics: true };
            let registration = control.register(&mapping, access).unwrap();
            held.push((provider, control, mapping, registration));
        }
        let keys: Vec<_> = held.iter().map(|held| exported(&held.3.keys)).collect();
        let ends = held.into_iter().zip(0..).map(|((provider, control, mapping, own), side)| {
            let mut rails = Rails::new(provider, CONFIG);
            rails.attach(NEAR, Memory::own(mapping, CardKeys::first(own.keys), NEAR));
            let far: usize = (side + 1) % engines;
            rails.attach(FAR, Memory::peer(CardKeys::first(keys[far].clone()), NEAR).unwrap());
            End {
                joint: Joint::new(PathSettings::DEFAULT, CONFIG.caps(), CONFIG.receives),
                rails,
                control,
                card: Pipe::new(random.pick(&latency)),
                orders: Pipe::new(random.pick(&latency)),
                wishes: Pipe::new(random.pick(&latency)),
                wire: Pipe::new(random.pick(&latency)),
                closed: false,
                bye_said: false,
                sent: false,
                taken: 0,
                ended: 0,
                arrived: 0,
                next: 0,
            }
        });
        let ends = ends.collect();
        Self { net, random, ends, clumsy: 0 }
    }

    fn step(&mut self) {
        self.net.advance(1 + self.random.below(2_000));
        for side in 0..self.ends.len() {
            self.serve(side);
            self.deliver(side);
        }
    }

    /// The fabric of one end, and the card's thread.
    fn serve(&mut self, side: usize) {
        let now_ns = self.net.now_ns();
        let end = &mut self.ends[side];
        while let Some(order) = end.orders.receive(now_ns) {
            match order {
                Order::Adopt(number, caps) => {
                    if end.rails.adopt(RAIL, number, caps, 0).is_err() {
                        panic!("the fabric has room for a rail");
                    }
                }
                Order::Tell(told) => end.rails.tell(told),
                Order::Release => {
                    let pair = end.rails.release(RAIL).expect("the rail was told that it is dead");
                    end.control.destroy(pair, pair).unwrap();
                    end.joint.destroyed();
                }
            }
        }
        let mut done: Vec<Done> = Vec::with_capacity(16);
        end.rails.poll(now_ns, &mut done);
        end.ended += done.len() as u64;
        let mut arrivals: Vec<Arrival> = Vec::with_capacity(16);
        end.rails.arrivals(&mut arrivals);
        end.arrived += arrivals.len() as u64;
        while let Some(wish) = end.rails.wish() {
            end.wishes.send(now_ns, &mut self.random, wish);
        }
        while let Some((step, job)) = self.ends[side].card.receive(now_ns) {
            self.carry_out(side, step, job);
            self.act(side);
        }
    }

    fn carry_out(&mut self, side: usize, step: Step, job: Job) {
        let clumsy = self.random.below(1_000) < self.clumsy;
        let now_ns = self.net.now_ns();
        let end = &mut self.ends[side];
        match job {
            Job::Create { caps } => {
                let made = end.control.create(caps).unwrap();
                end.control.modify(made.number, &Move::Init(PathSettings::DEFAULT)).unwrap();
                if end.joint.created(Some((made.number, made.caps))) {
                    let order = Order::Adopt(made.pair, made.caps);
                    end.orders.send(now_ns, &mut self.random, order);
                }
            }
            Job::Endpoint { number, credits } => {
                let endpoint = end.control.endpoint(number, &PathSettings::DEFAULT, credits);
                let Step::Endpoint(life) = step else { panic!("{step:?}") };
                end.joint.endpoint(life, endpoint.ok().filter(|_| !clumsy));
            }
            Job::Move { number, moves } => {
                let connects = matches!(moves[0], Move::ReadyToReceive(_));
                let mut well = !(connects && clumsy);
                for to in &moves {
                    well = well && end.control.modify(number, to).is_ok();
                    end.sent |= well && matches!(to, Move::ReadyToSend(_));
                }
                end.sent &= !(well && matches!(step, Step::Reset(_)));
                end.joint.moved(step, well);
            }
        }
    }

    /// What reaches the control of one end.
    fn deliver(&mut self, side: usize) {
        let now_ns = self.net.now_ns();
        while let Some(wish) = self.ends[side].wishes.receive(now_ns) {
            assert_eq!(wish.rail, RAIL);
            self.ends[side].joint.wish(wish.epoch, wish.ask);
            self.act(side);
        }
        let from = (side + 1) % self.ends.len();
        while let Some(message) = self.ends[from].wire.receive(now_ns) {
            let end = &mut self.ends[side];
            match message {
                Some(_) if end.closed => {}
                Some(say) => end.joint.heard(&say).unwrap(),
                None => {
                    self.close(side);
                    self.ends[side].joint.silent();
                }
            }
            self.act(side);
        }
        self.act(side);
        let end = &mut self.ends[side];
        if end.closed && !end.bye_said && end.joint.hushed() {
            end.bye_said = true;
            end.wire.send(now_ns, &mut self.random, None);
        }
    }

    /// The connection ends, as seen from one end.
    fn close(&mut self, side: usize) {
        let end = &mut self.ends[side];
        if !std::mem::replace(&mut end.closed, true) {
            end.joint.lose();
        }
    }

    /// A rail is told that it is over. What it may have sent is delivered by nobody any more.
    fn check_silence(&mut self, side: usize) {
        if !self.ends[side].sent {
            return;
        }
        for end in &mut self.ends {
            let Some(number) = end.joint.number() else { continue };
            let state = end.control.state(number).unwrap();
            let delivers = matches!(state, PairState::ReadyToReceive | PairState::ReadyToSend);
            assert!(!delivers, "Gone was told while an end is in {state:?}");
        }
    }

    fn act(&mut self, side: usize) {
        let now_ns = self.net.now_ns();
        while let Some(act) = self.ends[side].joint.act() {
            let end = &mut self.ends[side];
            match act {
                Act::Send(_) if end.closed => {}
                Act::Send(say) => end.wire.send(now_ns, &mut self.random, Some(say)),
                Act::Card(step, job) => end.card.send(now_ns, &mut self.random, (step, job)),
                Act::Tell(epoch, news) => {
                    if news == News::Gone {
                        self.check_silence(side);
                    }
                    let end = &mut self.ends[side];
                    let told = Told { rail: RAIL, epoch, news };
                    end.orders.send(now_ns, &mut self.random, Order::Tell(told));
                }
                Act::Release => end.orders.send(now_ns, &mut self.random, Order::Release),
                Act::Fail(_) => self.close(side),
                Act::Over => {}
            }
        }
    }

    /// Offers one request at one end.
    fn offer(&mut self, side: usize, notify: bool) {
        let end = &mut self.ends[side];
        let n = end.next;
        let at = (n * 8) % (BYTES / 2);
        let mut made = request(n, Verb::Write, at, BYTES / 2 + at, 8);
        made = Request { rail: RAIL, immediate: 7, ..made };
        made.flags = if notify { REQUEST_NOTIFY } else { 0 };
        let taken = end.rails.post(&[made]) as u64;
        end.taken += taken;
        end.next += taken;
    }

    /// One fault, of any kind.
    fn plant(&mut self) {
        let sides = self.ends.len() as u64;
        let side = self.random.index(self.ends.len());
        let broken = |world: &mut Self, side: usize, tells: bool| {
            let Some(number) = world.ends[side].joint.number() else { return };
            world.net.break_pair(number);
            if tells {
                world.ends[side].joint.broken("its device says so");
                world.act(side);
            }
        };
        let tells = self.random.chance(50);
        match self.random.below(100) {
            0..50 => broken(self, side, tells),
            50..75 => (0..sides).for_each(|side| {
                broken(self, usize::try_from(side).unwrap(), tells);
            }),
            75..95 => {
                let Some(number) = self.ends[side].joint.number() else { return };
                let plan = crate::fabric::qp::sim::PostPlan {
                    taken: 0,
                    say: crate::fabric::qp::sim::Say::Missing,
                    errno: 12,
                };
                if tells {
                    self.net.plan_receives(number, plan);
                } else {
                    self.net.plan_post(number, plan);
                }
            }
            _ if self.random.chance(10) => {
                self.close(side);
                self.act(side);
            }
            _ => {}
        }
    }

    fn ready(&self) -> bool {
        let ready = |end: &End| end.joint.ready() && end.rails.state(RAIL) == RailState::Ready;
        self.ends.iter().all(ready)
    }

    fn dead(&self) -> bool {
        let dead = |end: &End| end.joint.dead() && end.rails.state(RAIL) != RailState::Ready;
        self.ends.iter().all(dead)
    }

    /// Lets time pass until the rail has come to a rest, either way.
    fn settle(&mut self) {
        self.net.calm();
        self.clumsy = 0;
        for _ in 0..40_000 {
            self.step();
            let still = self.ends.iter().all(|end| end.rails.at_rest() && end.ended == end.taken);
            if (self.ready() && still) || self.dead() {
                break;
            }
        }
        let states: Vec<_> =
            self.ends.iter().map(|end| (end.rails.state(RAIL), &end.joint)).collect();
        assert!(self.ready() || self.dead(), "neither ready nor dead: {states:?}");
    }

    /// Bytes and notifications go by it, both ways.
    fn carries(&mut self) {
        for side in 0..self.ends.len() {
            let before: Vec<_> = self.ends.iter().map(|end| (end.taken, end.arrived)).collect();
            let degraded = self.ends[side].rails.counts().degraded;
            self.offer(side, true);
            for _ in 0..20_000 {
                self.step();
                if self.ends[side].ended == self.ends[side].taken {
                    break;
                }
            }
            assert_eq!(self.ends[side].taken, before[side].0 + 1, "not taken");
            assert_eq!(self.ends[side].ended, self.ends[side].taken, "it hangs");
            let far = (side + 1) % self.ends.len();
            for _ in 0..10 {
                self.step();
            }
            assert_eq!(self.ends[far].arrived, before[far].1 + 1);
            let counts = self.ends[side].rails.counts();
            assert_eq!(counts.degraded, degraded, "a connection that did not hold");
        }
    }

    /// The rail comes to its end everywhere, and nothing is left of it.
    fn ends_clean(&mut self) {
        for side in 0..self.ends.len() {
            self.close(side);
            self.act(side);
        }
        let mut released = false;
        for _ in 0..40_000 {
            self.step();
            if self.dead() && !released {
                released = true;
                for side in 0..self.ends.len() {
                    self.ends[side].joint.release();
                    self.act(side);
                }
            }
            if self.ends.iter().all(|end| end.joint.over()) {
                break;
            }
        }
        for end in &mut self.ends {
            assert!(end.joint.over(), "{:?}", end.joint);
            assert_eq!(end.rails.state(RAIL), RailState::Absent);
            assert_eq!(end.ended, end.taken);
            let number = end.joint.number().unwrap();
            assert!(end.control.state(number).is_err(), "a queue pair is left");
        }
    }
}

#[test]
fn two_ends_are_joined_and_carry() {
    let mut world = World::new(1, 2);
    world.settle();
    assert!(world.ready());
    world.carries();
    world.ends_clean();
}

#[test]
fn a_rail_to_oneself_is_joined_fails_and_comes_back() {
    each_seed(50, |seed| {
        let mut world = World::new(seed, 1);
        world.settle();
        assert!(world.ready());
        world.carries();
        let number = world.ends[0].joint.number().unwrap();
        world.net.break_pair(number);
        world.offer(0, false);
        world.settle();
        assert!(world.ready());
        world.carries();
        world.ends_clean();
    });
}

#[test]
fn whatever_fails_ends_ready_or_dead() {
    let (mut alive, mut gone) = (0, 0);
    let tally = std::cell::RefCell::new((&mut alive, &mut gone));
    each_seed(600, |seed| {
        let mut world = World::new(seed, 2);
        world.clumsy = world.random.pick(&[0, 0, 20, 200]);
        for _ in 0..2_000 {
            if world.random.chance(2) {
                world.plant();
            }
            for side in 0..2 {
                let notify = world.random.chance(20);
                world.offer(side, notify);
            }
            world.step();
        }
        world.settle();
        if world.ready() {
            world.carries();
            *tally.borrow_mut().0 += 1;
        } else {
            *tally.borrow_mut().1 += 1;
        }
        world.ends_clean();
    });
    if std::env::var_os("VERBRING_SEED").is_none() {
        assert!(alive > 100 && gone > 50, "{alive} alive, {gone} gone: too much of one kind");
    }
}

/// Both ends fail at the same moment, again and again: what they say crosses on the way.
#[test]
fn ends_that_fail_at_once_come_back() {
    each_seed(200, |seed| {
        let mut world = World::new(seed, 2);
        for _ in 0..4 {
            world.settle();
            assert!(world.ready());
            for side in 0..2 {
                let number = world.ends[side].joint.number().unwrap();
                world.net.break_pair(number);
                world.offer(side, true);
            }
            for _ in 0..world.random.below(30) {
                world.step();
            }
        }
        world.settle();
        assert!(world.ready());
        world.carries();
        world.ends_clean();
    });
}

/// Nothing that a peer says out of turn is believed, or makes anybody panic.
#[test]
fn what_a_peer_says_out_of_turn_is_a_violation() {
    let mut joint = Joint::new(PathSettings::DEFAULT, CONFIG.caps(), CONFIG.receives);
    assert!(joint.heard(&Say::Up { life: 0 }).is_err());
    assert!(joint.heard(&Say::Quiet { life: 1 }).is_err());
    joint.heard(&Say::Quiet { life: 0 }).unwrap();
    assert!(joint.heard(&Say::Quiet { life: 0 }).is_err());
    assert!(joint.heard(&Say::Quiet { life: 1 }).is_err(), "we have not ended the first");
    joint.created(Some((5, CONFIG.caps())));
    joint.wish(9, Ask::Connect);
    joint.wish(9, Ask::Quiesce);
    joint.moved(Step::Quiet(0), true);
    joint.heard(&Say::Quiet { life: 1 }).unwrap();
    assert!(joint.heard(&Say::Quiet { life: 2 }).is_err(), "we have not begun the second");
    let news: Vec<_> = std::iter::from_fn(|| joint.act())
        .filter_map(|act| if let Act::Tell(epoch, news) = act { Some((epoch, news)) } else { None })
        .collect();
    assert_eq!(news, [(9, News::Broken), (9, News::Quiet)]);
}

/// Random talk, random wishes, random outcomes: any order of them is survived.
#[test]
fn no_order_of_events_makes_a_joint_panic() {
    each_seed(2_000, |seed| {
        let mut random = Random::new(seed);
        let mut joint = Joint::new(PathSettings::DEFAULT, CONFIG.caps(), CONFIG.receives);
        joint.created(Some((5, CONFIG.caps())));
        let (_, mut control) = Net::new().device(SimConfig::DEFAULT, 64);
        let number = control.create(CONFIG.caps()).unwrap().number;
        let endpoint = control.endpoint(number, &PathSettings::DEFAULT, 1).unwrap();
        for _ in 0..60 {
            let life = random.below32(3);
            match random.below(10) {
                0..4 => {
                    let say = [
                        Say::Ready { life, endpoint, round: 0 },
                        Say::Up { life },
                        Say::Quiet { life },
                    ];
                    let _ = joint.heard(&random.pick(&say));
                }
                4..6 => {
                    let ask = random.pick(&[Ask::Connect, Ask::Quiesce, Ask::Reset]);
                    joint.wish(life, ask);
                }
                6 => joint.endpoint(life, random.chance(70).then_some(endpoint)),
                7 => {
                    let steps = [Step::Up(life), Step::Quiet(life), Step::Reset(life)];
                    let more = [Step::Hush, Step::Still, Step::End];
                    let either = [random.pick(&steps), random.pick(&more)];
                    let step = random.pick(&either);
                    joint.moved(step, random.chance(70));
                }
                8 if random.chance(20) => joint.lose(),
                8 if random.chance(20) => joint.silent(),
                8 => joint.broken("its device says so"),
                _ => while joint.act().is_some() {},
            }
        }
    });
}

/// A device says of a queue pair that it has failed, idle or under load: both ends are told, and
/// the rail comes back with all that can be repeated done.
#[test]
fn f12_a_queue_pair_that_its_device_gives_up_is_rebuilt_at_both_ends() {
    each_seed(100, |seed| {
        let mut world = World::new(seed, 2);
        world.settle();
        let side = world.random.index(2);
        for _ in 0..world.random.below(12) {
            world.offer(side, false);
        }
        for _ in 0..world.random.below(20) {
            world.step();
        }
        let number = world.ends[side].joint.number().unwrap();
        // The word comes after the failure, before it, or alone.
        let when = world.random.below(3);
        if when == 0 {
            world.net.break_pair(number);
        }
        world.ends[side].joint.broken("its device says so");
        world.act(side);
        if when == 1 {
            world.net.break_pair(number);
        }
        // What is told takes its time to reach the rails.
        for _ in 0..400 {
            world.step();
        }
        world.settle();
        assert!(world.ready());
        for end in &world.ends {
            assert!(end.rails.counts().degraded > 0, "an end was not told");
        }
        world.carries();
        world.ends_clean();
    });
}

/// How long a peer may be silent, and how often is tried again, is what was set: it is in what the
/// card is told when it joins the queue pairs.
#[test]
fn q14_times_and_retries_in_force_are_those_that_were_set() {
    let settings = PathSettings {
        timeout: 19,
        retry: 3,
        rnr_retry: 2,
        rnr_timer: 27,
        ..PathSettings::DEFAULT
    };
    let mut joint = Joint::new(settings, CONFIG.caps(), CONFIG.receives);
    assert_eq!(joint.settings(), settings);
    let (_, mut control) = Net::new().device(SimConfig::DEFAULT, 64);
    let number = control.create(CONFIG.caps()).unwrap().number;
    let endpoint = control.endpoint(number, &settings, 1).unwrap();
    joint.created(Some((number, CONFIG.caps())));
    joint.wish(1, Ask::Connect);
    joint.endpoint(0, Some(endpoint));
    joint.heard(&Say::Ready { life: 0, endpoint, round: 0 }).unwrap();
    let told = std::iter::from_fn(|| joint.act()).find_map(|act| match act {
        Act::Card(Step::Up(0), Job::Move { moves, .. }) => Some(moves),
        _ => None,
    });
    let links: Vec<_> = told
        .expect("the queue pair is connected")
        .iter()
        .map(|to| match to {
            Move::ReadyToReceive(link) | Move::ReadyToSend(link) => link.settings,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(links, [settings; 2]);
}
