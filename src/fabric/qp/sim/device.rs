//! The two ends of a simulated device: the data path, and control.

use std::sync::Arc;

use super::super::provider::{
    Access, BadPost, Broken, Caps, Created, DeviceLimits, Endpoint, Key, MESSAGE_BYTES, Move,
    PairState, PathSettings, Provider, ProviderControl, ProviderError, Range, Registration, Wc,
    WcKind, WcStatus, Wr, WrVerb,
};
use super::{ADDRESS_SHIFT, Net, Pair, Phase, PostPlan, Registered, Say, Sent, work_completion};
use crate::abi::errno;
use crate::shm::Mapping;

/// The data path of simulated devices.
#[derive(Debug)]
pub struct SimProvider {
    net: Net,
    /// By card.
    devices: Vec<usize>,
    /// The queue pair's number, by rail.
    rails: Vec<Option<u32>>,
}

/// The control of a simulated device.
#[derive(Debug)]
pub struct SimControl {
    net: Net,
    device: usize,
}

impl SimProvider {
    pub(super) fn new(net: Net, devices: Vec<usize>) -> Self {
        Self { net, devices, rails: Vec::new() }
    }

    fn number(&self, rail: u16) -> Option<u32> {
        self.rails.get(usize::from(rail)).copied().flatten()
    }

    /// What a planned stop of a post of `count` says, and how many are really posted.
    fn stop(plan: Option<PostPlan>, count: usize) -> (usize, Option<BadPost>) {
        let Some(plan) = plan else { return (count, None) };
        let taken = count.min(plan.taken as usize);
        let said = match plan.say {
            Say::Right => Some(u32::try_from(taken).unwrap_or(u32::MAX)),
            Say::Missing => None,
            Say::Wrong(index) => Some(index),
        };
        (taken, Some(BadPost { taken: said, errno: plan.errno }))
    }

    fn post_one(&self, number: u32, wr: &Wr, ranges: &[Range]) -> Result<(), i32> {
        let mut world = self.net.world();
        let now_ns = world.now_ns;
        let pair = &world.pairs[number as usize];
        let device = pair.device;
        if !matches!(pair.state, PairState::ReadyToSend | PairState::Error) {
            return Err(errno::EINVAL);
        }
        if pair.occupied.len() >= pair.caps.sends as usize {
            world.overfull += 1;
            return Err(errno::ENOMEM);
        }
        if wr.inline && wr.bytes > pair.caps.inline_bytes {
            return Err(errno::EINVAL);
        }
        let ranges: Vec<_> = wr.local(ranges).collect();
        if ranges.len() > pair.caps.ranges as usize {
            return Err(errno::EINVAL);
        }
        let whole = ranges.iter().map(|range| u64::from(range.bytes)).sum::<u64>();
        assert_eq!(whole, u64::from(wr.bytes), "ranges that are not the whole");
        let mut payload = Vec::new();
        if wr.inline && wr.verb == WrVerb::Write {
            payload = world.gather(number as usize, &ranges).ok_or(errno::EINVAL)?;
        }
        let pair = &mut world.pairs[number as usize];
        pair.occupied.push_back(wr.wr_id);
        pair.occupied_most = pair.occupied_most.max(pair.occupied.len());
        pair.posted.push(*wr);
        if pair.state == PairState::Error {
            let wc = work_completion(number as usize, wr.wr_id, WcStatus::Flushed);
            world.complete(device, wc);
        } else {
            pair.sends.push_back(Sent {
                wr: *wr,
                ranges,
                payload,
                phase: Phase::Waiting(now_ns),
                number: 0,
                took: false,
            });
        }
        Ok(())
    }
}

const UNKNOWN: BadPost = BadPost { taken: Some(0), errno: errno::EINVAL };

impl Provider for SimProvider {
    type Pair = u32;

    fn completions_max(&self, card: u8) -> u32 {
        let Some(&device) = self.devices.get(usize::from(card)) else { return 0 };
        let world = self.net.look();
        u32::try_from(world.devices[device].completions_max).unwrap_or(u32::MAX)
    }

    fn adopt(&mut self, rail: u16, pair: u32) {
        let rail = usize::from(rail);
        self.rails.resize(self.rails.len().max(rail + 1), None);
        assert!(self.rails[rail].is_none(), "adopted a rail twice");
        self.rails[rail] = Some(pair);
    }

    fn release(&mut self, rail: u16) -> Option<u32> {
        self.rails.get_mut(usize::from(rail))?.take()
    }

    fn post_ranges(&mut self, rail: u16, list: &[Wr], ranges: &[Range]) -> Result<(), BadPost> {
        let number = self.number(rail).ok_or(UNKNOWN)?;
        let plan = self.net.pair(number).post_plans.pop_front();
        let (taken, stop) = Self::stop(plan, list.len());
        let refused = list[..taken].iter().zip(0..).find_map(|(wr, index)| {
            let errno = self.post_one(number, wr, ranges).err()?;
            Some(BadPost { taken: Some(index), errno })
        });
        self.net.work(number);
        refused.or(stop).map_or(Ok(()), Err)
    }

    fn post_receives(&mut self, rail: u16, wr_id: u64, count: u32) -> Result<(), BadPost> {
        let number = self.number(rail).ok_or(UNKNOWN)?;
        let mut pair = self.net.pair(number);
        let plan = pair.receive_plans.pop_front();
        let (taken, stop) = Self::stop(plan, count as usize);
        if pair.state == PairState::Reset {
            return Err(UNKNOWN);
        }
        for index in 0..taken {
            if pair.receives.len() >= pair.caps.receives as usize {
                let taken = u32::try_from(index).ok();
                return Err(BadPost { taken, errno: errno::ENOMEM });
            }
            if pair.state == PairState::Error {
                break;
            }
            pair.receives.push_back(wr_id);
        }
        stop.map_or(Ok(()), Err)
    }

    fn poll(&mut self, out: &mut Vec<Wc>) -> Result<(), Broken> {
        let mut world = self.net.world();
        let mut broken = None;
        for (&device, card) in self.devices.iter().zip(0..) {
            world.devices[device].polls += 1;
            if world.devices[device].overrun {
                broken = Some(Broken { card, errno: super::super::EIO });
                continue;
            }
            while out.len() < out.capacity()
                && let Some(wc) = world.devices[device].completions.pop_front()
            {
                if wc.kind == WcKind::Work {
                    let occupied = &mut world.pairs[wc.number as usize].occupied;
                    if let Some(at) = occupied.iter().position(|wr_id| *wr_id == wc.wr_id) {
                        occupied.drain(..=at);
                    }
                }
                out.push(wc);
            }
        }
        broken.map_or(Ok(()), Err)
    }

    fn arm(&mut self) -> Result<(), i32> {
        for &device in &self.devices {
            self.net.world().devices[device].armed = true;
        }
        Ok(())
    }
}

impl SimControl {
    pub(super) fn new(net: Net, device: usize) -> Self {
        Self { net, device }
    }

    /// The device fails: its queue pairs go to ERROR, and none is connected until then.
    pub fn fail(&self, until_ns: u64) {
        let mut world = self.net.world();
        world.devices[self.device].fails_until_ns = until_ns;
        for number in 0..world.pairs.len() {
            if world.pairs[number].device == self.device && !world.pairs[number].destroyed {
                world.fail_pair(number);
            }
        }
    }

    /// Takes the device's port down, or up again. While it is down nothing reaches it, and what
    /// it has sent is lost, answers too: its queue pairs learn of that by time-outs. What stays
    /// on the device goes on.
    pub fn set_port(&self, up: bool) {
        self.net.world().set_port(self.device, up);
    }

    /// How often its completion queue was looked at.
    #[must_use]
    pub fn polls(&self) -> u64 {
        self.net.look().devices[self.device].polls
    }

    fn known(&self, number: u32) -> Result<usize, ProviderError> {
        let world = self.net.look();
        let pair = world.pairs.get(number as usize);
        if pair.is_none_or(|pair| pair.device != self.device || pair.destroyed) {
            return Err(ProviderError::Unknown { what: "queue pair", number });
        }
        Ok(number as usize)
    }
}

impl ProviderControl for SimControl {
    type Pair = u32;
    type Memory = Arc<Mapping>;

    fn limits(&self) -> DeviceLimits {
        self.net.look().devices[self.device].config.limits
    }

    fn create(&mut self, ask: Caps) -> Result<Created<u32>, ProviderError> {
        let mut world = self.net.world();
        let config = world.devices[self.device].config;
        let caps = Caps {
            sends: ask.sends.min(config.caps_max.sends),
            receives: ask.receives.min(config.caps_max.receives),
            inline_bytes: ask.inline_bytes.min(config.caps_max.inline_bytes),
            ranges: ask.ranges.min(config.caps_max.ranges).min(config.limits.ranges_max),
        };
        let none = caps.sends == 0 || caps.receives == 0 || caps.ranges == 0;
        if none || caps.inline_bytes < MESSAGE_BYTES {
            let hint = "ask for less";
            return Err(ProviderError::Limit { field: "caps", value: 0, limit: 1, hint });
        }
        let number = u32::try_from(world.pairs.len()).unwrap_or(u32::MAX);
        world.pairs.push(Pair {
            device: self.device,
            state: PairState::Reset,
            caps,
            psn: 0,
            link: None,
            sends: std::collections::VecDeque::new(),
            receives: std::collections::VecDeque::new(),
            occupied: std::collections::VecDeque::new(),
            occupied_most: 0,
            last_start_ns: 0,
            dead: false,
            started: 0,
            expected: 0,
            hold_up_ns: None,
            cut: false,
            destroyed: false,
            rnr_count: 0,
            latency_ns: config.latency_ns,
            post_plans: std::collections::VecDeque::new(),
            receive_plans: std::collections::VecDeque::new(),
            work_plans: std::collections::VecDeque::new(),
            losing: 0,
            lose: 0,
            repeat: 0,
            posted: Vec::new(),
        });
        Ok(Created { pair: number, number, caps })
    }

    fn endpoint(
        &mut self,
        number: u32,
        settings: &PathSettings,
        credits: u32,
    ) -> Result<Endpoint, ProviderError> {
        let index = self.known(number)?;
        let mut world = self.net.world();
        world.next_psn = (world.next_psn + 0x1_0001) & 0xff_ffff;
        let psn = world.next_psn;
        world.pairs[index].psn = psn;
        let limits = world.devices[self.device].config.limits;
        Ok(Endpoint {
            number,
            psn,
            gid: [settings.gid_index; 16],
            lid: 0,
            mtu_bytes: limits.mtu_bytes,
            reads_in: limits.reads_in_max,
            reads_out: limits.reads_out_max,
            credits,
        })
    }

    fn modify(&mut self, number: u32, to: &Move) -> Result<(), ProviderError> {
        let index = self.known(number)?;
        let mut world = self.net.world();
        let fails = world.now_ns < world.devices[self.device].fails_until_ns;
        let pair = &mut world.pairs[index];
        let have = pair.state;
        let refuse = |want| Err(ProviderError::State { number, have, want });
        match to {
            Move::Reset => {
                world.give_up(index);
                let pair = &mut world.pairs[index];
                pair.state = PairState::Reset;
                pair.link = None;
                pair.sends.clear();
                pair.receives.clear();
                pair.occupied.clear();
                pair.rnr_count = 0;
                (pair.started, pair.expected) = (0, 0);
                let completions = &mut world.devices[self.device].completions;
                completions.retain(|wc| wc.number != number);
            }
            Move::Init(_) if have == PairState::Reset => pair.state = PairState::Init,
            Move::Init(_) => return refuse(PairState::Init),
            Move::ReadyToReceive(_) if fails => return refuse(PairState::ReadyToReceive),
            Move::ReadyToReceive(link) if have == PairState::Init && link.own.psn == pair.psn => {
                pair.link = Some(*link);
                pair.state = PairState::ReadyToReceive;
            }
            Move::ReadyToReceive(_) => return refuse(PairState::ReadyToReceive),
            Move::ReadyToSend(_) if have == PairState::ReadyToReceive => {
                pair.state = PairState::ReadyToSend;
            }
            Move::ReadyToSend(_) => return refuse(PairState::ReadyToSend),
            Move::Error => world.fail_pair(index),
        }
        Ok(())
    }

    fn state(&mut self, number: u32) -> Result<PairState, ProviderError> {
        let index = self.known(number)?;
        Ok(self.net.look().pairs[index].state)
    }

    fn destroy(&mut self, number: u32, pair: u32) -> Result<(), ProviderError> {
        assert_eq!(number, pair, "a number and a queue pair that differ");
        self.modify(number, &Move::Reset)?;
        self.net.pair(number).destroyed = true;
        Ok(())
    }

    fn register(
        &mut self,
        memory: &Arc<Mapping>,
        access: Access,
    ) -> Result<Registration, ProviderError> {
        let mut world = self.net.world();
        let most = world.devices[self.device].config.limits.registration_bytes_max;
        let id = world.memories.len();
        let base = (id as u64 + 1) << ADDRESS_SHIFT;
        let mut keys = Vec::new();
        let mut offset = 0;
        while offset < memory.bytes() {
            let bytes = most.min(memory.bytes() - offset);
            world.next_key += 2;
            let (lkey, rkey) = (world.next_key, world.next_key + 1);
            // Pieces do not lie side by side, so that whoever runs over an end is caught.
            let address = base + offset + (keys.len() as u64) * 4096;
            keys.push(Key { offset, bytes, address, lkey, rkey });
            offset += bytes;
        }
        let keys: Box<[Key]> = keys.into();
        let mapping = Arc::clone(memory);
        world.memories.push(Some(Registered {
            device: self.device,
            mapping,
            access,
            keys: keys.clone(),
        }));
        Ok(Registration { id: u32::try_from(id).unwrap_or(u32::MAX), keys })
    }

    fn deregister(&mut self, id: u32) -> Result<(), ProviderError> {
        let mut world = self.net.world();
        let place = world.memories.get_mut(id as usize).filter(|place| place.is_some());
        let Some(place) = place else {
            return Err(ProviderError::Unknown { what: "registration", number: id });
        };
        *place = None;
        Ok(())
    }
}
