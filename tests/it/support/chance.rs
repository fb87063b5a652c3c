//! Reproducible chance: a seed gives the same numbers on every machine.

/// A small generator (SplitMix64); good enough to pick where bodies are cut.
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    /// The generator of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The generator of a name.
    pub(crate) fn named(name: &str) -> Self {
        // FNV-1a
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        });
        Self::new(hash)
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound` (0 when `bound` is 0).
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        if bound == 0 {
            0
        } else {
            (self.next() % bound as u64) as usize
        }
    }
}

/// Where a body is cut before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Nowhere.
    Whole,
    /// At about every 200th byte on average, anywhere.
    Random(u64),
    /// After every byte.
    EveryByte,
}

/// The pieces of `body`.
pub(crate) fn cut(body: &[u8], how: Cut) -> Vec<Vec<u8>> {
    match how {
        Cut::Whole if body.is_empty() => Vec::new(),
        Cut::Whole => vec![body.to_vec()],
        Cut::EveryByte => body.iter().map(|b| vec![*b]).collect(),
        Cut::Random(seed) => {
            let mut chance = Chance::new(seed);
            let mut pieces = Vec::new();
            let mut rest = body;
            while !rest.is_empty() {
                // Mostly longish pieces, some of a few bytes.
                let most = if chance.below(4) == 0 { 5 } else { 1_000 };
                let len = (1 + chance.below(most)).min(rest.len());
                let (piece, after) = rest.split_at(len);
                pieces.push(piece.to_vec());
                rest = after;
            }
            pieces
        }
    }
}

#[test]
fn pieces_make_the_whole() {
    let body: Vec<u8> = (0..=255_u8).cycle().take(10_000).collect();
    for how in [Cut::Whole, Cut::Random(1), Cut::Random(2), Cut::EveryByte] {
        let pieces = cut(&body, how);
        assert!(pieces.iter().all(|p| !p.is_empty()));
        assert_eq!(pieces.concat(), body, "{how:?}");
    }
    assert_eq!(cut(&body, Cut::EveryByte).len(), body.len());
    assert!(cut(&body, Cut::Random(1)).len() > 10);
}
