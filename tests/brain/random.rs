//! Seeds, and numbers that follow from them.

/// A seed that a failed test printed, to run that one again.
const SEED_VARIABLE: &str = "KUBEWHARF_TEST_SEED";

/// The same few seeds each time, or the one that the environment names.
pub(crate) fn seeds(count: u64) -> Vec<u64> {
    named_seed().unwrap_or_else(|| (1..=count).collect())
}

/// Seeds that nobody has tried, or the one that the environment names.
pub(crate) fn new_seeds(count: u64) -> Vec<u64> {
    named_seed().unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock after 1970");
        (0..count).map(|number| now.as_secs() * 1000 + number).collect()
    })
}

fn named_seed() -> Option<Vec<u64>> {
    let text = std::env::var(SEED_VARIABLE).ok()?;
    Some(vec![text.parse().unwrap_or_else(|_| panic!("{SEED_VARIABLE}={text}: must be a number"))])
}

/// Numbers that look random and follow from a seed (Vigna's splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(0x632b_e59b_d9b4_e019))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    pub(crate) fn one_of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }
}
