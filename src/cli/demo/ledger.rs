//! Bills of the simulated provider: written when an exchange ends, however it does; the newest are kept.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::clock::Clock;
use crate::types::time::Mono;

/// Bills that are kept.
const MAX_BILLS: usize = 65_536;

/// What one exchange was billed for. An exchange that the client left is billed for what was generated until then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bill {
    /// When the request was there.
    pub from: Mono,
    /// When the answer ended.
    pub to: Mono,
    /// Whom it is billed to: what follows `sk-demo-` in the API key, else `other`.
    pub account: String,
    /// Model as asked for.
    pub model: String,
    /// Input tokens.
    pub input: u64,
    /// Output tokens.
    pub output: u64,
}

impl Bill {
    /// Input and output tokens.
    pub fn tokens(&self) -> u64 {
        self.input.saturating_add(self.output)
    }
}

/// The newest bills, oldest first.
#[derive(Debug)]
pub(super) struct Ledger {
    clock: Clock,
    bills: Mutex<VecDeque<Bill>>,
}

impl Ledger {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            bills: Mutex::default(),
        }
    }

    /// Bills of exchanges that ended after `since`, oldest first.
    pub(super) fn since(&self, since: Mono) -> Vec<Bill> {
        let bills = self.bills.lock().unwrap_or_else(PoisonError::into_inner);
        let newest: Vec<Bill> = bills.iter().rev().take_while(|b| b.to > since).cloned().collect();
        newest.into_iter().rev().collect()
    }

    /// How many there are of them, and their tokens.
    pub(super) fn sum_since(&self, since: Mono) -> (u64, u64) {
        let bills = self.bills.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = bills.iter().rev().take_while(|b| b.to > since);
        recent.fold((0, 0), |(n, tokens), bill| (n + 1, tokens + bill.tokens()))
    }
}

/// What an exchange has used so far; billed when dropped, however the exchange ended.
#[derive(Debug)]
pub(super) struct Tab {
    pub(super) ledger: Arc<Ledger>,
    pub(super) from: Mono,
    pub(super) account: String,
    pub(super) model: String,
    pub(super) input: u64,
    pub(super) output: u64,
}

impl Drop for Tab {
    fn drop(&mut self) {
        let mut bills = self.ledger.bills.lock().unwrap_or_else(PoisonError::into_inner);
        if bills.len() >= MAX_BILLS {
            bills.pop_front();
        }
        bills.push_back(Bill {
            from: self.from,
            // Read under the lock, so that bills stand in the order of their ends.
            to: self.ledger.clock.mono(),
            account: std::mem::take(&mut self.account),
            model: std::mem::take(&mut self.model),
            input: self.input,
            output: self.output,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::time::{Now, Wall};
    use std::time::Duration;

    #[test]
    fn bills_are_bounded_and_in_order() {
        let clock = Clock::manual(Now {
            mono: Mono::from_millis(1000),
            wall: Wall::from_unix_millis(0),
        });
        let ledger = Arc::new(Ledger::new(clock.clone()));
        let spend = |output| {
            clock.advance(Duration::from_millis(1));
            drop(Tab {
                ledger: Arc::clone(&ledger),
                from: Mono::ZERO,
                account: String::new(),
                model: String::new(),
                input: 1,
                output,
            });
        };
        for output in 0..70_000 {
            spend(output);
        }
        let all = ledger.since(Mono::ZERO);
        assert_eq!((all.len(), all[MAX_BILLS - 1].output), (MAX_BILLS, 69_999));
        let point = clock.mono();
        spend(9);
        assert_eq!(ledger.sum_since(point), (1, 10));
        assert_eq!(ledger.since(point).len(), 1);
    }
}
