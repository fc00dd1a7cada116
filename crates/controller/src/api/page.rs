//! Lists in pages. A cursor is opaque to its holder: hex of the last key with a checksum, so that a
//! made-up or cut one is refused instead of skipping objects.

use model::{Code, Page, Problem};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use utoipa::IntoParams;

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

/// The page of `items` that `paging` asks for, in the order of `key`, which must be unique. Of a long
/// list only the page is copied and sorted.
pub(crate) fn page<'a, T: Clone + 'a>(
    items: impl IntoIterator<Item = &'a T>,
    key: impl Fn(&T) -> String,
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
    let mut keyed: Vec<(String, &T)> = items
        .into_iter()
        .map(|item| (key(item), item))
        .filter(|(key, _)| after.as_ref().is_none_or(|after| key > after))
        .collect();
    let more = keyed.len() > limit;
    if more {
        keyed.select_nth_unstable_by(limit, |a, b| a.0.cmp(&b.0));
        keyed.truncate(limit);
    }
    keyed.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let next = keyed.last().filter(|_| more).map(|(key, _)| encode(key));
    Ok(Page { items: keyed.into_iter().map(|(_, item)| item.clone()).collect(), next })
}

fn checksum(key: &[u8]) -> [u8; 4] {
    let hash = Sha256::digest(key);
    [hash[0], hash[1], hash[2], hash[3]]
}

fn encode(key: &str) -> String {
    hex(&[&checksum(key.as_bytes())[..], key.as_bytes()].concat())
}

fn decode(cursor: &str) -> Result<String, Problem> {
    let read = || {
        let bytes = cursor
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect::<Option<Vec<u8>>>()?;
        let (sum, key) = bytes.split_at_checked(4)?;
        let whole = cursor.len().is_multiple_of(2) && sum == checksum(key);
        String::from_utf8(key.to_vec()).ok().filter(|_| whole)
    };
    read().ok_or_else(|| {
        Problem::new(Code::InvalidCursor, "The cursor is not one that this server gave.")
            .hint("give `next` of the page before, unchanged, or start without a cursor")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("{:03}", (n * 37) % count)).collect()
    }

    #[test]
    fn pages_are_the_whole_list_in_order() {
        let mut paging = Paging { limit: Some(7), cursor: None };
        let mut seen = Vec::new();
        loop {
            let page = page(&words(50), String::clone, &paging).expect("a page");
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
        let given = encode("name");
        for cut in 0..given.len() {
            assert!(decode(&given[..cut]).is_err(), "{}", &given[..cut]);
        }
        for bad in ["zz", "é", "00000000", "deadbeef61", &given.replace('6', "7"), "+1+1+1+1"] {
            let problem = decode(bad).expect_err(bad);
            assert_eq!(problem.code, Code::InvalidCursor, "{bad}");
        }
        assert_eq!(decode(&given).expect("our own"), "name");
    }

    #[test]
    fn limits_have_limits() {
        for (limit, fine) in [(0, false), (1, true), (MOST, true), (MOST + 1, false)] {
            let paging = Paging { limit: Some(limit), cursor: None };
            assert_eq!(page(&words(3), String::clone, &paging).is_ok(), fine, "{limit}");
        }
    }
}
