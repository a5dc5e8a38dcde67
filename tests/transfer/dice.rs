//! Every choice of one simulated attempt, rolled before it begins: one number for each question. Zero is always the dullest
//! answer, so that a failing attempt is made simpler by putting zeros.

use super::rules::Micros;
use crate::fuzz::mutate::Random;

macro_rules! questions {
    ($($name:ident)*) => {
        /// What is left to chance.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Die { $($name,)* }

        impl Die {
            /// All of them, in order.
            pub const ALL: &'static [Die] = &[$(Die::$name,)*];
        }
    };
}

questions! {
    Plan Serial Whole PrefillVersion DecodeVersion KvOff
    FirstOutput OrphanLimit HandOver Unpark PrefillLimit
    PrefillConnects PrefillConnecting PrefillBodyBreaks PrefillWriting PrefillServes PrefillEnds PrefillQueues PrefillComputes
    PrefillPushes PrefillPushing PrefillBreaksAt PrefillNotices PrefillCrashes PrefillCrashAt PrefillRestarts PrefillReports
    DecodeConnects DecodeConnecting DecodeBodyBreaks DecodeWriting DecodeServes DecodeEnds DecodeQueues DecodeLoads
    DecodeComputes DecodeReports DecodeHangs DecodeBreaks DecodeBreakAt DecodeNotices DecodeCrashes DecodeCrashAt
    DecodeRestarts DecodeFull Comments Preempted Room W14
    OthersWait OthersQueue OthersRun OthersArrived Busy Step
    Others AnotherConnects
    Client ClientAt ClientAfter Slow
    ReleaseTold ReleaseTakes WakeTold WakeTakes GaugesFail GaugesTake Latency Ties
    OtherLimits FirstStep
}

/// How many there are.
pub const QUESTIONS: usize = Die::ALL.len();

/// One number for each question.
#[derive(Clone)]
pub struct Dice(pub [u32; QUESTIONS]);

impl Dice {
    pub fn roll(seed: u64) -> Dice {
        let mut random = Random::new(seed);
        let mut dice = [0; QUESTIONS];
        for die in &mut dice {
            *die = (random.next() >> 32) as u32 | 1 << 31;
        }
        Dice(dice)
    }

    pub fn of(&self, die: Die) -> Roll {
        Roll(self.0[die as usize])
    }
}

/// One number.
#[derive(Clone, Copy)]
pub struct Roll(u32);

impl Roll {
    /// Another number for the same question; as dull as the first.
    pub fn again(self, number: u32) -> Roll {
        if self.0 == 0 {
            return self;
        }
        let mixed = (self.0 ^ number.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
        Roll((mixed ^ (mixed >> 15)).wrapping_mul(0xc2b2_ae35) >> 3 | 1 << 31)
    }

    /// Whether something happens that happens in so many of a thousand cases.
    pub fn one_of_1000(self, cases: u32) -> bool {
        self.0 != 0 && (self.0 >> 4) % 1000 < cases
    }

    /// One of several cases by their weights; the first is the dullest.
    pub fn weighed(self, weights: &[u32]) -> usize {
        if self.0 == 0 {
            return 0;
        }
        let mut left = (self.0 >> 4) % weights.iter().sum::<u32>();
        for (index, weight) in weights.iter().enumerate() {
            if left < *weight {
                return index;
            }
            left -= weight;
        }
        0
    }

    /// One of them; the first is the dullest.
    pub fn among<T: Copy>(self, items: &[T]) -> T {
        items[(self.0 & (u32::MAX >> 1)) as usize % items.len()]
    }

    pub fn below(self, bound: u32) -> u32 {
        (self.0 & (u32::MAX >> 1)) % bound.max(1)
    }

    /// A time in an even spread; the shortest is the dullest.
    pub fn between(self, low: Micros, high: Micros) -> Micros {
        low + Micros::from(self.0 & (u32::MAX >> 1)) % (high - low + 1)
    }

    /// A time of which every order of magnitude is as likely as any other; the shortest is the dullest.
    pub fn spread(self, low: Micros, high: Micros) -> Micros {
        if self.0 == 0 {
            return low;
        }
        let doublings = (high / low.max(1)).max(1).ilog2() + 1;
        let from = low << (self.0 % doublings);
        (from + Micros::from((self.0 & (u32::MAX >> 1)) >> 5) % from.max(1)).min(high)
    }
}
