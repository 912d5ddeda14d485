//! A fabric that does what the test says: takes a prefix, completes late, in any order, with
//! errors, or twice. Bytes are moved by the real same-host fabric, at the moment of completion.

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use crate::abi::Page;
use crate::engine::Limits as EngineLimits;
use crate::fabric::{Done, Fabric, Limits, Local, Request};
use crate::seeds::Random;
use crate::shm::Mapping;

/// The errno of a failure that a test asked for (EIO).
pub(super) const BROKEN: i32 = 5;

/// The fabric, as the engine owns it.
#[derive(Debug)]
pub(super) struct Script {
    stage: Stage,
    local: Local,
    depth: u32,
}

/// The test's hand on the fabric.
#[derive(Clone, Debug, Default)]
pub(super) struct Stage(Rc<RefCell<Plan>>);

/// Looks at a batch before it is taken.
type OnPost = Box<dyn FnMut(&[Request])>;

#[derive(Default)]
pub(super) struct Plan {
    /// How many requests the next posts take; all when it is empty.
    pub(super) takes: VecDeque<usize>,
    /// Nothing completes before the test says so.
    pub(super) hold: bool,
    /// What was taken and has not completed, oldest first.
    pub(super) held: Vec<Request>,
    /// Everything that was ever offered, batch by batch.
    pub(super) offered: Vec<Vec<Request>>,
    /// Everything that was ever taken.
    pub(super) taken: Vec<Request>,
    /// Called before a post takes anything.
    pub(super) on_post: Option<OnPost>,
    /// Called before a poll completes anything.
    pub(super) on_poll: Option<Box<dyn FnMut()>>,
    /// Nothing may be chained: requests complete in whatever order the test says.
    pub(super) unchained: bool,
    /// Random behaviour.
    pub(super) mood: Option<Mood>,
    due: VecDeque<Due>,
}

/// How a fabric behaves by chance. All odds are in percent.
#[derive(Clone, Debug)]
pub(super) struct Mood {
    pub(super) random: Random,
    /// A post takes only a part.
    pub(super) partial: u64,
    /// A request completes at a given poll.
    pub(super) prompt: u64,
    /// A completion is an error; half of these have moved their bytes.
    pub(super) broken: u64,
    /// An old completion comes again.
    pub(super) stale: u64,
    pub(super) old: Vec<Done>,
}

#[derive(Clone, Copy, Debug)]
enum Due {
    /// Carries a request out if the errno is 0, and completes it.
    Carry(Request, i32),
    /// A completion that belongs to nothing.
    Stale(Done),
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Plan").field("held", &self.held).field("due", &self.due).finish()
    }
}

impl Stage {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// A fabric on this stage.
    pub(super) fn fabric(&self, limits: EngineLimits) -> Script {
        let local = Local::new(limits.regions_max, limits.window_wrs, limits.slice_bytes);
        Script { stage: self.clone(), local, depth: limits.window_wrs }
    }

    pub(super) fn plan(&self) -> RefMut<'_, Plan> {
        self.0.borrow_mut()
    }

    /// From now on requests complete only by [`Stage::complete`].
    pub(super) fn hold(&self) {
        self.plan().hold = true;
    }

    /// The next posts take this many requests each.
    pub(super) fn take_only(&self, takes: &[usize]) {
        self.plan().takes.extend(takes);
    }

    pub(super) fn held(&self) -> usize {
        self.plan().held.len()
    }

    /// Completes one of the held requests at the next poll.
    pub(super) fn complete(&self, at: usize, errno: i32) {
        let mut plan = self.plan();
        let request = plan.held.remove(at);
        plan.due.push_back(Due::Carry(request, errno));
    }

    /// Completes everything that is held, oldest first.
    pub(super) fn complete_all(&self) {
        while self.held() > 0 {
            self.complete(0, 0);
        }
    }

    /// Completes everything, now and from now on.
    pub(super) fn release(&self) {
        self.complete_all();
        self.plan().hold = false;
    }

    /// Has a completion arrive that belongs to nothing.
    pub(super) fn stale(&self, done: Done) {
        self.plan().due.push_back(Due::Stale(done));
    }
}

impl Plan {
    /// Decides what completes at this poll.
    fn decide(&mut self) {
        let Some(mut mood) = self.mood.take() else {
            if !self.hold {
                let all = self.held.drain(..).map(|request| Due::Carry(request, 0));
                self.due.extend(all);
            }
            return;
        };
        let mut at = 0;
        while at < self.held.len() {
            if !mood.random.chance(mood.prompt) {
                at += 1;
                continue;
            }
            let request = self.held.remove(at);
            let errno = if mood.random.chance(mood.broken) { BROKEN } else { 0 };
            let place = mood.random.index(self.due.len() + 1);
            self.due.insert(place, Due::Carry(request, errno));
        }
        if !mood.old.is_empty() && mood.random.chance(mood.stale) {
            let done = mood.random.pick(&mood.old);
            self.due.push_back(Due::Stale(done));
        }
        self.mood = Some(mood);
    }

    fn remember(&mut self, done: Done) {
        if let Some(mood) = self.mood.as_mut() {
            mood.old.push(done);
            if mood.old.len() > 64 {
                mood.old.remove(0);
            }
        }
    }
}

impl Script {
    fn carry_out(&mut self, request: Request) -> Done {
        assert_eq!(self.local.post(&[request]), 1);
        let mut done = Vec::with_capacity(1);
        self.local.poll(0, &mut done);
        done[0]
    }

    fn end(&mut self, request: Request, errno: i32) -> Done {
        let half_done = self.stage.plan().mood.as_mut().is_some_and(|m| m.random.chance(50));
        if errno == 0 {
            return self.carry_out(request);
        }
        if half_done {
            self.carry_out(request);
        }
        Done::new(request.ticket, errno)
    }
}

impl Fabric for Script {
    type Memory = Arc<Mapping>;

    fn limits(&self) -> Limits {
        let chain_max = if self.stage.plan().unchained { 1 } else { self.depth };
        Limits { depth: self.depth, chain_max, ..self.local.limits() }
    }

    fn attach(&mut self, region: u32, memory: Arc<Mapping>) {
        self.local.attach(region, memory);
    }

    fn detach(&mut self, region: u32) -> Option<Arc<Mapping>> {
        let plan = self.stage.plan();
        let names = |request: &Request| request.local == region || request.remote == region;
        assert!(!plan.held.iter().any(names), "a region left that the fabric still works on");
        drop(plan);
        self.local.detach(region)
    }

    fn read_pages(&self, region: u32, offset: u64, pages: &mut [Page]) -> bool {
        self.local.read_pages(region, offset, pages)
    }

    fn post(&mut self, batch: &[Request]) -> usize {
        let hook = self.stage.plan().on_post.take();
        if let Some(mut hook) = hook {
            hook(batch);
            self.stage.plan().on_post = Some(hook);
        }
        let mut plan = self.stage.plan();
        assert!(!batch.is_empty(), "a post of nothing");
        let all = batch.len();
        let mut taken = plan.takes.pop_front().unwrap_or(all).min(all);
        if let Some(mood) = plan.mood.as_mut()
            && mood.random.chance(mood.partial)
        {
            taken = mood.random.index(all + 1);
        }
        plan.offered.push(batch.to_vec());
        plan.held.extend(&batch[..taken]);
        assert!(plan.held.len() <= self.depth as usize, "more in flight than the fabric holds");
        plan.taken.extend(&batch[..taken]);
        taken
    }

    fn poll(&mut self, _now_ns: u64, done: &mut Vec<Done>) {
        let hook = self.stage.plan().on_poll.take();
        if let Some(mut hook) = hook {
            hook();
            self.stage.plan().on_poll = Some(hook);
        }
        self.stage.plan().decide();
        while done.len() < done.capacity() {
            let Some(due) = self.stage.plan().due.pop_front() else { break };
            let completion = match due {
                Due::Carry(request, errno) => self.end(request, errno),
                Due::Stale(done) => done,
            };
            if matches!(due, Due::Carry(..)) {
                self.stage.plan().remember(completion);
            }
            done.push(completion);
        }
    }
}
