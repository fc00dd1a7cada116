//! Lists in pages. A cursor is opaque to its holder: hex of the last key with a checksum, so that a
//! made-up or cut one is refused instead of skipping objects.
//!
//! Each page looks at every object's key, so keys borrow from the objects: texts made for 10,000 of them
//! took more than half of the controller's time.

use model::{Code, Page, Problem};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use utoipa::IntoParams;
use uuid::Uuid;

use crate::tokens::hex;

const DEFAULT: usize = 100;
const MOST: usize = 1000;

/// Which part of a list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Paging {
    /// At most this many objects, 1 to 1000; 100 if absent.
    #[serde(default)]
    pub(crate) limit: Option<usize>,
    /// `next` of the page before.
    #[serde(default)]
    pub(crate) cursor: Option<String>,
}

/// Where an object stands in a list: by name, of one name by number, of one number by identity, which is
/// unique. A list by time leaves the name empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key<'a> {
    pub(crate) name: &'a str,
    pub(crate) number: u64,
    pub(crate) id: Uuid,
}

impl<'a> Key<'a> {
    pub(crate) fn named(name: &'a str, id: Uuid) -> Self {
        Self { name, number: 0, id }
    }

    fn bytes(self) -> Vec<u8> {
        [&self.number.to_be_bytes(), &self.id.as_bytes()[..], self.name.as_bytes()].concat()
    }

    fn from_bytes(bytes: &'a [u8]) -> Option<Self> {
        let (number, rest) = bytes.split_first_chunk::<8>()?;
        let (id, name) = rest.split_first_chunk::<16>()?;
        let name = std::str::from_utf8(name).ok()?;
        Some(Self { name, number: u64::from_be_bytes(*number), id: Uuid::from_bytes(*id) })
    }
}

/// The page of `items` that `paging` asks for, in the order of `key`. Of a long list only the page is
/// copied and sorted.
pub(crate) fn page<'a, T: Clone + 'a>(
    items: impl IntoIterator<Item = &'a T>,
    key: impl Fn(&'a T) -> Key<'a>,
    paging: &Paging,
) -> Result<Page<T>, Problem> {
    let limit = paging.limit.unwrap_or(DEFAULT);
    if !(1..=MOST).contains(&limit) {
        return Err(Problem::new(
            Code::BadRequest,
            format!("A page has 1 to {MOST} objects, not {limit}."),
        ));
    }
    let after = paging.cursor.as_deref().map(decode).transpose()?;
    let after = match &after {
        Some(bytes) => Some(Key::from_bytes(bytes).ok_or_else(invalid)?),
        None => None,
    };
    let mut keyed: Vec<(Key<'a>, &T)> = items
        .into_iter()
        .map(|item| (key(item), item))
        .filter(|(key, _)| after.is_none_or(|after| *key > after))
        .collect();
    let more = keyed.len() > limit;
    if more {
        keyed.select_nth_unstable_by_key(limit, |(key, _)| *key);
        keyed.truncate(limit);
    }
    keyed.sort_unstable_by_key(|(key, _)| *key);
    let next = keyed.last().filter(|_| more).map(|(key, _)| encode(&key.bytes()));
    Ok(Page { items: keyed.into_iter().map(|(_, item)| item.clone()).collect(), next })
}

fn checksum(key: &[u8]) -> [u8; 4] {
    let hash = Sha256::digest(key);
    [hash[0], hash[1], hash[2], hash[3]]
}

fn encode(key: &[u8]) -> String {
    hex(&[&checksum(key)[..], key].concat())
}

fn decode(cursor: &str) -> Result<Vec<u8>, Problem> {
    let read = || {
        let bytes = cursor
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect::<Option<Vec<u8>>>()?;
        let (sum, key) = bytes.split_at_checked(4)?;
        let whole = cursor.len().is_multiple_of(2) && sum == checksum(key);
        whole.then(|| key.to_vec())
    };
    read().ok_or_else(invalid)
}

fn invalid() -> Problem {
    Problem::new(Code::InvalidCursor, "The cursor is not one that this server gave.")
        .hint("give `next` of the page before, unchanged, or start without a cursor")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("{:03}", (n * 37) % count)).collect()
    }

    #[expect(clippy::ptr_arg, reason = "the items are Strings")]
    fn by_name(word: &String) -> Key<'_> {
        Key::named(word, Uuid::nil())
    }

    #[test]
    fn pages_are_the_whole_list_in_order() {
        let mut paging = Paging { limit: Some(7), cursor: None };
        let mut seen = Vec::new();
        loop {
            let page = page(&words(50), by_name, &paging).expect("a page");
            seen.extend(page.items);
            match page.next {
                Some(next) => paging.cursor = Some(next),
                None => break,
            }
        }
        let mut all = words(50);
        all.sort();
        assert_eq!(seen, all);
    }

    #[test]
    fn no_cursor_that_was_not_given_is_taken() {
        let given = encode(b"name");
        for cut in 0..given.len() {
            assert!(decode(&given[..cut]).is_err(), "{}", &given[..cut]);
        }
        for bad in ["zz", "é", "00000000", "deadbeef61", &given.replace('6', "7"), "+1+1+1+1"] {
            let problem = decode(bad).expect_err(bad);
            assert_eq!(problem.code, Code::InvalidCursor, "{bad}");
        }
        assert_eq!(decode(&given).expect("our own"), b"name");
        // whole, but not a key
        let paging = Paging { limit: None, cursor: Some(given) };
        assert!(page(&words(3), by_name, &paging).is_err());
    }

    #[test]
    fn a_key_comes_back_from_its_bytes() {
        let key = Key { name: "wéb", number: 7, id: Uuid::from_u128(9) };
        assert_eq!(Key::from_bytes(&key.bytes()), Some(key));
    }

    #[test]
    fn limits_have_limits() {
        for (limit, fine) in [(0, false), (1, true), (MOST, true), (MOST + 1, false)] {
            let paging = Paging { limit: Some(limit), cursor: None };
            assert_eq!(page(&words(3), by_name, &paging).is_ok(), fine, "{limit}");
        }
    }
}
