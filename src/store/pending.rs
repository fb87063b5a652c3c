//! Records that are still to be written: the latest for each key, bounded.

use std::collections::HashMap;

use super::record::{Key, Record};

/// History is dropped beyond this many records or bytes; what happens next depends on the rest, which may take twice.
const RECORDS: usize = 100_000;
const BYTES: usize = 64 << 20;

/// Records in order of their first coming; a later one takes the place of an earlier one with its key.
#[derive(Debug, Default)]
pub(super) struct Pending {
    records: Vec<Record>,
    places: HashMap<Key, usize>,
    bytes: usize,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn records(&self) -> &[Record] {
        &self.records
    }

    pub(super) fn clear(&mut self) {
        self.records.clear();
        self.places.clear();
        self.bytes = 0;
    }

    /// Takes the record; `false` when there was no room for it.
    pub(super) fn push(&mut self, record: Record) -> bool {
        let key = record.key();
        let weight = record.weight();
        let place = key.as_ref().and_then(|key| self.places.get(key));
        if let Some(old) = place.and_then(|at| self.records.get_mut(*at)) {
            self.bytes = self.bytes.saturating_sub(old.weight()).saturating_add(weight);
            *old = record;
            return true;
        }
        let times = if record.is_vital() { 2 } else { 1 };
        let bytes = self.bytes.saturating_add(weight);
        if self.records.len() >= times * RECORDS || bytes > times * BYTES {
            return false;
        }
        self.bytes = bytes;
        if let Some(key) = key {
            self.places.insert(key, self.records.len());
        }
        self.records.push(record);
        true
    }

    /// Takes what a later one holds; how many had no room.
    pub(super) fn append(&mut self, later: &mut Self) -> u64 {
        if self.is_empty() {
            std::mem::swap(self, later);
            return 0;
        }
        let mut dropped = 0;
        for record in later.records.drain(..) {
            dropped += u64::from(!self.push(record));
        }
        later.clear();
        dropped
    }
}
