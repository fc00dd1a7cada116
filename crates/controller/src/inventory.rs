//! The inventory: what the controller must remember, as a versioned log of small JSON documents.
//!
//! `commit` writes several documents at once, or none of them when one is not at the revision that
//! the caller saw. Every commit has one revision, larger than all before. All reads are served from
//! memory. Documents: `token/UUID`, `datastore/UUID`,
//! `datastore-policy/UUID`. What lives on datastores is not in here: it
//! is listed by the node and only indexed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use model::{Code, Problem};
use rusqlite::{OptionalExtension, params};
use serde_json::Value;
use tokio::sync::broadcast;

use crate::store::Store;

/// Commits that stay in the log.
const LOG_KEPT: i64 = 10_000;

/// A document as it was last committed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Document {
    pub(crate) revision: u64,
    pub(crate) body: Value,
}

/// What a commit expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Absent,
    Revision(u64),
    Any,
}

/// One document of a commit; no body deletes it.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) key: String,
    pub(crate) expected: Expected,
    pub(crate) body: Option<Value>,
}

/// What a watcher is told: the revision and the keys it touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) revision: u64,
    pub(crate) keys: Arc<[String]>,
}

#[derive(Debug)]
pub(crate) struct Inventory {
    store: Store,
    documents: Mutex<BTreeMap<String, Document>>,
    /// One commit at a time, so that memory and log see them in the same order.
    turn: tokio::sync::Mutex<()>,
    commits: broadcast::Sender<Committed>,
}

impl Inventory {
    pub(crate) async fn load(store: Store) -> Result<Self, Problem> {
        let (documents, (least, most)) = store
            .run(|db| {
                let of_all = "SELECT coalesce(min(revision), 0), coalesce(max(revision), 0) FROM \
                              (SELECT revision FROM log UNION ALL SELECT revision FROM document)";
                let span: (i64, i64) =
                    db.query_row(of_all, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
                let mut select = db.prepare("SELECT key, revision, body FROM document")?;
                let rows = select.query_map([], |row| {
                    let (key, revision, body): (String, i64, String) =
                        (row.get(0)?, row.get(1)?, row.get(2)?);
                    Ok((key, revision, body))
                })?;
                Ok((rows.collect::<rusqlite::Result<Vec<_>>>()?, span))
            })
            .await?;
        let damaged = |detail: String| {
            let hint = "move controller.db away; `shale datastore create NAME --dir PATH` finds datastores again";
            Problem::new(Code::Corrupt, detail).hint(hint)
        };
        // the next commit's number stands above all of them: there must be one, and room for many more
        if least < 0 || most > i64::MAX / 2 {
            let detail =
                format!("The inventory has revisions from {least} to {most}, which it never gave.");
            return Err(damaged(detail));
        }
        let mut known = BTreeMap::new();
        for (key, revision, body) in documents {
            let body = serde_json::from_str(&body).map_err(|e| {
                damaged(format!("The inventory's document {key} does not parse: {e}."))
            })?;
            let revision = u64::try_from(revision).expect("not negative, as was seen");
            known.insert(key, Document { revision, body });
        }
        let (commits, _) = broadcast::channel(64);
        Ok(Self { store, documents: Mutex::new(known), turn: tokio::sync::Mutex::new(()), commits })
    }

    pub(crate) fn get(&self, key: &str) -> Option<Document> {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Every document whose key starts with `prefix`, in order of the keys.
    pub(crate) fn with_prefix(&self, prefix: &str) -> Vec<(String, Document)> {
        let documents = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        documents
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, document)| (key.clone(), document.clone()))
            .collect()
    }

    /// Commits from now on. A reader that falls behind is told so by the channel and loads again.
    pub(crate) fn watch(&self) -> broadcast::Receiver<Committed> {
        self.commits.subscribe()
    }

    /// Writes all of `writes` durably, or none.
    pub(crate) async fn commit(&self, writes: Vec<Write>) -> Result<u64, Problem> {
        let _turn = self.turn.lock().await;
        let batch = writes.clone();
        let revision = self
            .store
            .run(move |db| {
                let transaction = db.transaction()?;
                let last: i64 =
                    transaction.query_row("SELECT coalesce(max(revision), 0) FROM log", [], |row| {
                        row.get(0)
                    })?;
                let revision = last + 1;
                for write in &batch {
                    let found: Option<i64> = transaction
                        .query_row(
                            "SELECT revision FROM document WHERE key = ?1",
                            [&write.key],
                            |row| row.get(0),
                        )
                        .optional()?;
                    let as_expected = match write.expected {
                        Expected::Any => true,
                        Expected::Absent => found.is_none(),
                        Expected::Revision(seen) => {
                            found.and_then(|f| u64::try_from(f).ok()) == Some(seen)
                        }
                    };
                    if !as_expected {
                        return Ok(Err(write.key.clone()));
                    }
                    let body = write.body.as_ref().map(Value::to_string);
                    match &body {
                        Some(body) => transaction.execute(
                            "INSERT OR REPLACE INTO document(key, revision, body) VALUES(?1, ?2, ?3)",
                            params![write.key, revision, body],
                        )?,
                        None => transaction
                            .execute("DELETE FROM document WHERE key = ?1", [&write.key])?,
                    };
                    transaction.execute(
                        "INSERT OR REPLACE INTO log(revision, key, body) VALUES(?1, ?2, ?3)",
                        params![revision, write.key, body],
                    )?;
                }
                transaction.execute("DELETE FROM log WHERE revision <= ?1", [revision - LOG_KEPT])?;
                transaction.commit()?;
                Ok(Ok(u64::try_from(revision).unwrap_or(0)))
            })
            .await?
            .map_err(|key| {
                Problem::new(Code::Conflict, format!("{key} was changed by someone else meanwhile."))
                    .hint("read it again and repeat")
            })?;
        let keys: Arc<[String]> = writes.iter().map(|w| w.key.clone()).collect();
        {
            let mut documents = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
            for write in writes {
                match write.body {
                    Some(body) => {
                        documents.insert(write.key, Document { revision, body });
                    }
                    None => {
                        documents.remove(&write.key);
                    }
                }
            }
        }
        // nobody has to listen
        self.commits.send(Committed { revision, keys }).ok();
        Ok(revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn write(key: &str, expected: Expected, body: Option<Value>) -> Write {
        Write { key: key.into(), expected, body }
    }

    #[tokio::test]
    async fn a_commit_is_whole_or_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&dir.path().join("x.db")).expect("a database");
        let inventory = Inventory::load(store.clone()).await.expect("an inventory");
        let mut watch = inventory.watch();
        let new = |key| write(key, Expected::Absent, Some(json!({ "is": key })));
        let first = inventory.commit(vec![new("a/1"), new("a/2"), new("b/1")]).await.expect("new");
        assert_eq!(inventory.get("a/1").map(|d| d.revision), Some(first));
        let keys = |prefix| -> Vec<String> {
            inventory.with_prefix(prefix).into_iter().map(|(key, _)| key).collect()
        };
        assert_eq!(keys("a/"), ["a/1", "a/2"]);

        let stale =
            |expected| vec![write("a/1", Expected::Any, None), write("b/1", expected, None)];
        for expected in [Expected::Absent, Expected::Revision(first + 1)] {
            let refused = inventory.commit(stale(expected)).await.expect_err("stale");
            assert_eq!(refused.code, Code::Conflict, "{expected:?}");
            assert!(inventory.get("a/1").is_some(), "the other write was kept back too");
        }
        let missing = vec![write("c/1", Expected::Revision(first), Some(json!(1)))];
        assert_eq!(inventory.commit(missing).await.expect_err("stale").code, Code::Conflict);

        let second = inventory.commit(stale(Expected::Revision(first))).await.expect("as expected");
        assert!(second > first);
        assert_eq!(keys(""), ["a/2"]);
        let told: Vec<_> = std::iter::from_fn(|| watch.try_recv().ok()).collect();
        assert_eq!(told.iter().map(|c| c.revision).collect::<Vec<_>>(), [first, second]);
        assert_eq!(told[1].keys.as_ref(), ["a/1", "b/1"]);

        let again = Inventory::load(store).await.expect("loaded again");
        assert_eq!(again.with_prefix(""), inventory.with_prefix(""));
        assert_eq!(again.commit(vec![new("d/1")]).await.expect("new"), second + 1);
    }

    #[tokio::test]
    async fn revisions_that_leave_no_room_for_the_next_are_refused() {
        for (table, revision) in
            [("log", i64::MAX), ("document", i64::MAX), ("log", -1), ("document", i64::MIN)]
        {
            let dir = tempfile::tempdir().expect("a directory");
            let store = Store::open(&dir.path().join("x.db")).expect("a database");
            let insert =
                format!("INSERT INTO {table}(key, revision, body) VALUES('a', ?1, '{{}}')");
            store.run(move |db| db.execute(&insert, [revision])).await.expect("a row");
            let refused = Inventory::load(store).await.expect_err("damage is told");
            assert_eq!(refused.code, Code::Corrupt, "{table} {revision}: {}", refused.detail);
        }
    }

    #[tokio::test]
    async fn a_newer_database_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.db");
        let store = Store::open(&path).expect("a database");
        store.run(|db| db.pragma_update(None, "user_version", 99)).await.expect("set");
        assert_eq!(Store::open(&path).expect_err("newer").code, Code::UnknownFormat);
    }
}
