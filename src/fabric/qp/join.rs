//! Joins two fabrics of queue pairs whose control is in one place: what a control thread does
//! for its rails, without the wire to the other control. For tests of providers.

use super::provider::{
    Caps, Link, Move, PairState, PathSettings, Provider, ProviderControl, ProviderError,
};
use super::{Ask, Config, News, Rails, Told, Wish};

/// The control of both ends.
#[derive(Debug)]
pub struct Join<C> {
    controls: [C; 2],
    settings: PathSettings,
    joints: Vec<Joint>,
    /// Rails before the first joint's.
    before: u16,
    lost: [bool; 2],
    /// What rails failed by, of its own fault: side, rail, and the remote region's index.
    pub offences: Vec<(usize, u16, u32)>,
}

/// One rail, at both ends.
#[derive(Clone, Copy, Debug)]
struct Joint {
    numbers: [u32; 2],
    credits: [u32; 2],
    /// The epoch of each end that can be connected.
    ready: [Option<u32>; 2],
    /// The epoch of each end that has fallen quiet.
    quiet: [Option<u32>; 2],
    /// The last epoch of each end that is known.
    current: [u32; 2],
}

impl<C: ProviderControl> Join<C> {
    /// Takes the control of two devices, or of one that was opened twice.
    pub fn new(controls: [C; 2], settings: PathSettings) -> Self {
        Self {
            controls,
            settings,
            joints: Vec::new(),
            before: 0,
            lost: [false; 2],
            offences: Vec::new(),
        }
    }

    /// Has rail 0 left out, as [`Pair`](crate::fabric::Pair) has it.
    #[must_use]
    pub fn without_rail_0(self) -> Self {
        Self { before: 1, ..self }
    }

    /// Makes one more rail at both ends; it is connected by [`Join::serve`].
    ///
    /// # Errors
    /// If a device refuses.
    ///
    /// # Panics
    /// If a fabric does not adopt what its device made.
    pub fn open<P: Provider<Pair = C::Pair>>(
        &mut self,
        ends: [&mut Rails<P>; 2],
        config: &Config,
    ) -> Result<u16, ProviderError> {
        let rail = self.before + u16::try_from(self.joints.len()).unwrap_or(u16::MAX);
        let mut joint = Joint {
            numbers: [0; 2],
            credits: [0; 2],
            ready: [None; 2],
            quiet: [None; 2],
            current: [0; 2],
        };
        for ((end, control), side) in ends.into_iter().zip(&mut self.controls).zip(0..) {
            let made = control.create(config.caps())?;
            let Caps { receives, .. } = made.caps;
            control.modify(made.number, &Move::Init(self.settings))?;
            joint.numbers[side] = made.number;
            joint.credits[side] =
                config.receives.min(receives.saturating_sub(super::RECEIVES_KEPT));
            let adopted = end.adopt(rail, made.pair, made.caps, 0).map_err(|(error, _)| error);
            assert_eq!(adopted, Ok(()));
        }
        self.joints.push(joint);
        Ok(rail)
    }

    /// A queue pair's number, by rail and side.
    #[must_use]
    pub fn number(&self, rail: u16, side: usize) -> u32 {
        self.joints[usize::from(rail - self.before)].numbers[side]
    }

    /// The control of a side.
    pub fn control(&mut self, side: usize) -> &mut C {
        &mut self.controls[side]
    }

    /// A side cannot be reached any more: the other one's rails end when they fail.
    pub fn lose(&mut self, side: usize) {
        self.lost[side] = true;
    }

    /// Does what rails wish; false if there was nothing to do.
    ///
    /// # Errors
    /// If a device refuses.
    pub fn serve<P: Provider>(
        &mut self,
        mut ends: [&mut Rails<P>; 2],
    ) -> Result<bool, ProviderError> {
        let mut served = false;
        for side in 0..2 {
            while !self.lost[side]
                && let Some(wish) = ends[side].wish()
            {
                served = true;
                let blamed = wish.offender.map(|region| (side, wish.rail, region));
                self.offences.extend(blamed);
                let tell = |news| Told { rail: wish.rail, epoch: wish.epoch, news };
                match wish.ask {
                    Ask::Quiesce if self.lost[1 - side] => {
                        let number = self.number(wish.rail, side);
                        self.controls[side].modify(number, &Move::Reset)?;
                        ends[side].tell(tell(News::Gone));
                    }
                    Ask::Quiesce => self.quiesce(wish, side, &mut ends)?,
                    Ask::Reset => {
                        let number = self.number(wish.rail, side);
                        self.controls[side].modify(number, &Move::Reset)?;
                        self.controls[side].modify(number, &Move::Init(self.settings))?;
                        ends[side].tell(tell(News::Reset));
                    }
                    Ask::Connect => {
                        let joint = &mut self.joints[usize::from(wish.rail - self.before)];
                        joint.current[side] = wish.epoch;
                        joint.ready[side] = Some(wish.epoch);
                        if joint.quiet[1 - side].is_some() {
                            ends[side].tell(tell(News::Broken));
                        } else {
                            self.connect(wish.rail, &mut ends)?;
                        }
                    }
                }
            }
        }
        Ok(served)
    }

    /// Takes one end out of RTR and RTS, and tells the other; once both are, both may go on.
    fn quiesce<P: Provider>(
        &mut self,
        wish: Wish,
        side: usize,
        ends: &mut [&mut Rails<P>; 2],
    ) -> Result<(), ProviderError> {
        let Wish { rail, epoch, .. } = wish;
        let joint = &mut self.joints[usize::from(rail - self.before)];
        joint.ready[side] = None;
        joint.quiet[side] = Some(epoch);
        joint.current[side] = epoch;
        let Joint { numbers, quiet, current, .. } = *joint;
        self.controls[side].modify(numbers[side], &Move::Error)?;
        let [Some(_), Some(_)] = quiet else {
            let epoch = current[1 - side];
            ends[1 - side].tell(Told { rail, epoch, news: News::Broken });
            return Ok(());
        };
        self.joints[usize::from(rail - self.before)].quiet = [None; 2];
        for (side, end) in ends.iter_mut().enumerate() {
            end.tell(Told { rail, epoch: current[side], news: News::Quiet });
        }
        Ok(())
    }

    fn connect<P: Provider>(
        &mut self,
        rail: u16,
        ends: &mut [&mut Rails<P>; 2],
    ) -> Result<(), ProviderError> {
        let joint = self.joints[usize::from(rail - self.before)];
        let [Some(near), Some(far)] = joint.ready else { return Ok(()) };
        for (side, end) in ends.iter_mut().enumerate() {
            if self.controls[side].state(joint.numbers[side])? != PairState::Init {
                // It failed while it waited for the other end.
                self.joints[usize::from(rail - self.before)].ready[side] = None;
                let epoch = joint.current[side];
                end.tell(Told { rail, epoch, news: News::Broken });
                return Ok(());
            }
        }
        let [a, b] = [0, 1].map(|side: usize| {
            let credits = joint.credits[side];
            self.controls[side].endpoint(joint.numbers[side], &self.settings, credits)
        });
        let (a, b) = (a?, b?);
        let links = [(a, b), (b, a)].map(|(own, peer)| Link { own, peer, settings: self.settings });
        for (side, link) in links.iter().enumerate() {
            self.controls[side].modify(joint.numbers[side], &Move::ReadyToReceive(*link))?;
        }
        for (side, link) in links.iter().enumerate() {
            self.controls[side].modify(joint.numbers[side], &Move::ReadyToSend(*link))?;
        }
        let joint = &mut self.joints[usize::from(rail - self.before)];
        joint.ready = [None; 2];
        joint.current = [near, far];
        for (side, end) in ends.iter_mut().enumerate() {
            let news = News::Connected { credits: links[side].peer.credits };
            end.tell(Told {
                rail,
                epoch: self.joints[usize::from(rail - self.before)].current[side],
                news,
            });
        }
        Ok(())
    }
}
