//! Names turned into small numbers, bounded: what does not fit shares one number.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};

use siphasher::sip128::{Hasher128, SipHasher13};

use super::glob::Glob;
use crate::types::ids::AgentId;

/// The number shared by all names beyond the bound.
pub(crate) const OVERFLOW: u32 = 0;

/// Numbers found by 128 bits that stand for a name: two names share them with a chance of 1 in 10^30, and a number is
/// found without a look at names that are kept elsewhere in memory.
#[derive(Debug)]
pub(crate) struct Numbers {
    by_fingerprint: HashMap<Fingerprint, u32, BuildHasherDefault<FirstHalf>>,
    keys: (u64, u64),
}

/// Stands for a name; made by [`Numbers::fingerprint`], once, and good for that instance alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprint(u64, u64);

impl Default for Numbers {
    fn default() -> Self {
        // The secret with which every map of the standard library protects itself, so that nobody can choose names that
        // share a number. It decides nothing else: the same inputs give the same effects under any.
        let map: HashMap<(), ()> = HashMap::new();
        let secret = |of: u8| map.hasher().hash_one(of);
        Self {
            by_fingerprint: HashMap::default(),
            keys: (secret(0), secret(1)),
        }
    }
}

impl Numbers {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_fingerprint.len()
    }

    /// What stands for a name.
    #[inline]
    pub(crate) fn fingerprint(&self, name: impl Hash) -> Fingerprint {
        let mut hasher = SipHasher13::new_with_keys(self.keys.0, self.keys.1);
        name.hash(&mut hasher);
        let hash = hasher.finish128();
        Fingerprint(hash.h1, hash.h2)
    }

    /// The number of a name, when it has one.
    #[inline]
    pub(crate) fn get(&self, name: Fingerprint) -> Option<u32> {
        self.by_fingerprint.get(&name).copied()
    }

    /// Gives a number to a name.
    pub(crate) fn insert(&mut self, name: Fingerprint, number: u32) {
        self.by_fingerprint.insert(name, number);
    }

    /// Takes the number from a name; gives it back.
    pub(crate) fn remove(&mut self, name: Fingerprint) -> Option<u32> {
        self.by_fingerprint.remove(&name)
    }
}

/// Takes the first half of a fingerprint, which is a keyed hash already, as the hash.
#[derive(Debug, Default)]
struct FirstHalf(Option<u64>);

impl Hasher for FirstHalf {
    fn write(&mut self, bytes: &[u8]) {
        // Fingerprints come by `write_u64`; this keeps the promise for whatever else may come.
        for byte in bytes {
            self.write_u64(self.finish().wrapping_mul(31).wrapping_add(u64::from(*byte)));
        }
    }

    fn write_u64(&mut self, half: u64) {
        self.0.get_or_insert(half);
    }

    fn finish(&self) -> u64 {
        self.0.unwrap_or_default()
    }
}

/// Names and their numbers.
#[derive(Debug)]
pub(crate) struct Names<K> {
    numbers: Numbers,
    names: Vec<Option<K>>,
    free: Vec<u32>,
    max: usize,
    turned_away: bool,
}

impl<K: Clone + Borrow<str> + for<'a> From<&'a str>> Names<K> {
    /// No names, and room for `max`.
    pub(crate) fn new(max: usize) -> Self {
        let mut numbers = Numbers::default();
        let shared = numbers.fingerprint(AgentId::OVERFLOW);
        numbers.insert(shared, OVERFLOW);
        Self {
            numbers,
            names: vec![Some(K::from(AgentId::OVERFLOW))],
            free: Vec::new(),
            max: max.min(u32::MAX as usize - 1),
            turned_away: false,
        }
    }

    /// The number of a name, which is taken in when there is room.
    #[inline]
    pub(crate) fn number(&mut self, name: &K) -> u32 {
        let text: &str = name.borrow();
        let fingerprint = self.numbers.fingerprint(text);
        match self.numbers.get(fingerprint) {
            Some(number) => number,
            None => self.take_in(name, fingerprint),
        }
    }

    /// The number of a name that is known.
    pub(crate) fn known(&self, name: &str) -> Option<u32> {
        self.numbers.get(self.numbers.fingerprint(name))
    }

    /// The name of a number.
    pub(crate) fn name(&self, number: u32) -> Option<&K> {
        self.names.get(number as usize)?.as_ref()
    }

    /// All names with their numbers, in order of the numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &K)> {
        (0_u32..)
            .zip(&self.names)
            .filter_map(|(n, name)| Some((n, name.as_ref()?)))
    }

    /// Makes room: the number may be given to another name from now on.
    pub(crate) fn forget(&mut self, number: u32) {
        if number == OVERFLOW {
            return;
        }
        if let Some(name) = self.names.get_mut(number as usize).and_then(Option::take) {
            let text: &str = name.borrow();
            self.numbers.remove(self.numbers.fingerprint(text));
            self.free.push(number);
        }
    }

    /// Whether a name found no room since this was asked last.
    pub(crate) fn take_turned_away(&mut self) -> bool {
        std::mem::take(&mut self.turned_away)
    }

    #[cold]
    fn take_in(&mut self, name: &K, fingerprint: Fingerprint) -> u32 {
        // The shared one does not count.
        if self.numbers.len() > self.max {
            self.turned_away = true;
            return OVERFLOW;
        }
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                self.names.push(None);
                (self.names.len() - 1) as u32
            }
        };
        if let Some(place) = self.names.get_mut(number as usize) {
            *place = Some(name.clone());
        }
        self.numbers.insert(fingerprint, number);
        number
    }
}

/// Which names a rule wants, remembered by number so that patterns are tried once a name.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    globs: Vec<Glob>,
    known: Vec<Option<bool>>,
}

impl Filter {
    /// Wants names that fit one of the patterns; all, when there are none.
    pub(crate) fn new(patterns: &[String]) -> Self {
        Self {
            globs: patterns.iter().map(|p| Glob::new(p)).collect(),
            known: Vec::new(),
        }
    }

    /// Whether it wants everything.
    pub(crate) fn is_open(&self) -> bool {
        self.globs.is_empty()
    }

    /// Whether it wants the name with this number.
    #[inline]
    pub(crate) fn wants(&mut self, number: u32, name: &str) -> bool {
        if self.globs.is_empty() {
            return true;
        }
        let at = number as usize;
        if let Some(Some(known)) = self.known.get(at) {
            return *known;
        }
        if self.known.len() <= at {
            self.known.resize(at + 1, None);
        }
        let wanted = self.globs.iter().any(|g| g.matches(name));
        // The shared number stands for many names.
        if number != OVERFLOW
            && let Some(place) = self.known.get_mut(at)
        {
            *place = Some(wanted);
        }
        wanted
    }

    /// The number will mean another name.
    pub(crate) fn forget(&mut self, number: u32) {
        if let Some(place) = self.known.get_mut(number as usize) {
            *place = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_bound_names_share_a_number() {
        let mut names = Names::<AgentId>::new(2);
        let (a, b) = (names.number(&"a".into()), names.number(&"b".into()));
        assert_ne!(a, b);
        assert!(a != OVERFLOW && b != OVERFLOW);
        assert!(!names.take_turned_away());
        assert_eq!(names.number(&"c".into()), OVERFLOW);
        assert_eq!(names.number(&"a".into()), a);
        assert!(names.take_turned_away());
        assert_eq!(names.number(&AgentId::OVERFLOW.into()), OVERFLOW);
        names.forget(a);
        assert_eq!(names.known("a"), None);
        assert_eq!(names.number(&"c".into()), a);
        assert_eq!(names.name(a).map(AgentId::as_str), Some("c"));
        names.forget(OVERFLOW);
        assert_eq!(names.known(AgentId::OVERFLOW), Some(OVERFLOW));
        assert_eq!(names.iter().count(), 3);
    }

    #[test]
    fn a_filter_remembers_and_forgets() {
        let mut filter = Filter::new(&["prod-*".to_owned()]);
        assert!(filter.wants(3, "prod-1"));
        assert!(filter.wants(3, "remembered by number"));
        filter.forget(3);
        assert!(!filter.wants(3, "dev-1"));
        assert!(filter.wants(OVERFLOW, "prod-1"));
        assert!(!filter.wants(OVERFLOW, "dev-1"));
        assert!(Filter::new(&[]).wants(9, "x"));
    }
}
