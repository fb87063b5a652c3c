//! Values put into bins whose width grows with the value, so that a quantile is known to 0.4 % from few counts.
//!
//! Each doubling of a value is cut into 128 bins of equal width; below 256 every whole number has a bin of its own.
//! A value read back is the middle of its bin, at most 1/256 (0.39 %) from the true one. Bins are fixed, so counts of
//! several windows may be added, and taken off again, without loss.

const PER_DOUBLING: u64 = 128;
const BITS: u32 = PER_DOUBLING.trailing_zeros();

/// The bin of a value.
#[inline]
pub(crate) fn bin(value: u64) -> u16 {
    if value < PER_DOUBLING {
        return value as u16;
    }
    let shift = (63 - value.leading_zeros()) - BITS;
    let within = (value >> shift) - PER_DOUBLING;
    ((u64::from(shift) + 1) * PER_DOUBLING + within).min(u64::from(u16::MAX)) as u16
}

/// The middle of a bin.
pub(crate) fn middle(bin: u16) -> f64 {
    let bin = u64::from(bin);
    if bin < PER_DOUBLING {
        return bin as f64;
    }
    let width = 2_f64.powi((bin / PER_DOUBLING) as i32 - 1);
    let least = (PER_DOUBLING + bin % PER_DOUBLING) as f64 * width;
    least + (width - 1.0) / 2.0
}

/// How many of one bin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Count {
    /// Which bin.
    pub(crate) bin: u16,
    /// How many.
    pub(crate) count: u32,
}

/// Puts counts of the same bin together, in order of the bins; returns how many are left, at the front.
pub(crate) fn merge(counts: &mut [Count]) -> usize {
    counts.sort_unstable_by_key(|c| c.bin);
    let mut kept = 0_usize;
    for i in 0..counts.len() {
        let Some(&next) = counts.get(i) else { break };
        if next.count == 0 {
            continue;
        }
        match kept.checked_sub(1).and_then(|last| counts.get_mut(last)) {
            Some(last) if last.bin == next.bin => last.count = last.count.saturating_add(next.count),
            _ => {
                if let Some(place) = counts.get_mut(kept) {
                    *place = next;
                    kept += 1;
                }
            }
        }
    }
    kept
}

/// The value of the `rank`-th smallest (from 1) of counts in order of their bins.
pub(crate) fn at_rank(counts: &[Count], rank: u64) -> Option<f64> {
    let mut passed = 0_u64;
    for c in counts {
        passed += u64::from(c.count);
        if passed >= rank && c.count > 0 {
            return Some(middle(c.bin));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::incident::measure::LARGEST;

    #[test]
    fn small_numbers_are_exact() {
        for n in 0..=255 {
            assert_eq!(middle(bin(n)), n as f64);
        }
    }

    #[test]
    fn bins_are_in_order_and_fit() {
        let mut last = 0;
        for shift in 0..=42 {
            for add in [0, 1, 3] {
                let b = bin((1_u64 << shift) + add);
                assert!(b >= last || shift < 3);
                last = b;
            }
        }
        assert!(bin(LARGEST) < 5000);
        assert_eq!(bin(u64::MAX), bin(u64::MAX - 1));
    }

    proptest! {
        #[test]
        fn a_value_read_back_is_near(value in 1..=LARGEST) {
            let error = (middle(bin(value)) - value as f64).abs() / value as f64;
            prop_assert!(error <= 1.0 / 256.0, "{value}: {error}");
        }

        #[test]
        fn merging_keeps_every_count(bins in proptest::collection::vec((0_u16..50, 0_u32..9), 0..200)) {
            let mut counts: Vec<_> = bins.iter().map(|&(bin, count)| Count { bin, count }).collect();
            let left = merge(&mut counts);
            counts.truncate(left);
            prop_assert!(counts.windows(2).all(|w| w[0].bin < w[1].bin));
            for b in 0..50 {
                let before: u32 = bins.iter().filter(|(x, _)| *x == b).map(|(_, c)| c).sum();
                let after: u32 = counts.iter().filter(|c| c.bin == b).map(|c| c.count).sum();
                prop_assert_eq!(before, after);
            }
        }
    }
}
