//! The controller's local database: one SQLite file, `DATA/controller.db`.
//!
//! ```text
//!   document, log   the inventory: see inventory.rs
//!   task            finished tasks: history, not truth
//!   audit           who did what; append only
//!   answer          stored answers of POSTs with an Idempotency-Key
//! ```
//! All work happens on tokio's blocking threads; a statement never runs on a thread that serves.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use model::{Code, Problem};
use rusqlite::{Connection, OptionalExtension, params};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS document(
    key TEXT PRIMARY KEY, revision INTEGER NOT NULL, body TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS log(
    revision INTEGER NOT NULL, key TEXT NOT NULL, body TEXT, PRIMARY KEY(revision, key)) STRICT;
CREATE TABLE IF NOT EXISTS task(
    id TEXT PRIMARY KEY, created INTEGER NOT NULL, body TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS task_created ON task(created);
CREATE TABLE IF NOT EXISTS audit(
    id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, token TEXT, name TEXT, role TEXT,
    method TEXT NOT NULL, path TEXT NOT NULL, status INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS answer(
    token TEXT NOT NULL, key TEXT NOT NULL, request BLOB NOT NULL, created INTEGER NOT NULL,
    status INTEGER, location TEXT, content_type TEXT, body BLOB,
    PRIMARY KEY(token, key)) STRICT;
";

/// The layout of this file; another number is refused, never guessed at.
const FORMAT: i64 = 1;
/// Finished tasks that are kept.
const TASKS_KEPT: i64 = 10_000;
/// Audit entries that are kept.
const AUDIT_KEPT: i64 = 100_000;
/// How long a stored answer can be asked for again.
const ANSWER_MS: u64 = 24 * 3600 * 1000;

#[derive(Clone, Debug)]
pub(crate) struct Store {
    db: Arc<Mutex<Connection>>,
}

/// One line of the audit log.
#[derive(Clone, Debug)]
pub(crate) struct AuditRow {
    pub(crate) id: i64,
    pub(crate) at: u64,
    pub(crate) token: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) role: Option<String>,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) status: u16,
}

/// A stored answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) location: Option<String>,
    pub(crate) content_type: Option<String>,
    pub(crate) body: Vec<u8>,
}

/// What an Idempotency-Key means for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// New: run the request, then store its answer.
    Run,
    /// Done before: this was the answer.
    Again(Answer),
    /// Being worked on now.
    Running,
    /// The key belongs to another request.
    Mismatch,
}

impl Store {
    /// Opens or makes the database at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, Problem> {
        let failed = |e: rusqlite::Error| {
            Problem::new(
                Code::IoError,
                format!("The controller's database {} cannot be opened: {e}.", path.display()),
            )
            .hint("it is only an index: move it away and run `shale datastore create NAME --dir PATH` for each datastore")
        };
        let db = Connection::open(path).map_err(failed)?;
        // before anything is set: another version's file stays as it is
        let format: i64 =
            db.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
        if format != 0 && format != FORMAT {
            return Err(Problem::new(
                Code::UnknownFormat,
                format!(
                    "The controller's database {} has format {format}; this version knows {FORMAT}.",
                    path.display()
                ),
            )
            .hint("start the version of Shale that wrote it"));
        }
        db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
            .map_err(failed)?;
        db.execute_batch(SCHEMA).map_err(failed)?;
        db.pragma_update(None, "user_version", FORMAT).map_err(failed)?;
        // a request that a crash cut off has no answer; its objects carry names, so that a retry
        // cannot make a second one unseen
        db.execute("DELETE FROM answer WHERE status IS NULL", []).map_err(failed)?;
        Ok(Self { db: Arc::new(Mutex::new(db)) })
    }

    /// Runs `work` with the database on a blocking thread.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Problem> {
        let db = Arc::clone(&self.db);
        let done = tokio::task::spawn_blocking(move || {
            work(&mut db.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match done.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(e)) => {
                Err(Problem::new(Code::IoError, format!("The controller's database failed: {e}."))
                    .hint("see whether the data directory's file system is full or read-only"))
            }
            Err(e) => {
                Err(Problem::new(Code::Internal, format!("A database call ended early: {e}.")))
            }
        }
    }

    /// Keeps a finished task.
    pub(crate) async fn keep_task(&self, task: model::Task) -> Result<(), Problem> {
        let body = serde_json::to_string(&task).map_err(internal)?;
        let created = i64::try_from(task.created.unix_ms()).unwrap_or(i64::MAX);
        self.run(move |db| {
            db.execute(
                "INSERT OR REPLACE INTO task(id, created, body) VALUES(?1, ?2, ?3)",
                params![task.id.to_string(), created, body],
            )?;
            db.execute(
                "DELETE FROM task WHERE created <
                   (SELECT created FROM task ORDER BY created DESC LIMIT 1 OFFSET ?1)",
                [TASKS_KEPT],
            )?;
            Ok(())
        })
        .await
    }

    /// The latest finished tasks; one that no longer parses is left out.
    pub(crate) async fn tasks(&self, limit: u32) -> Result<Vec<model::Task>, Problem> {
        self.run(move |db| {
            let mut select = db.prepare("SELECT body FROM task ORDER BY created DESC LIMIT ?1")?;
            let rows = select.query_map([limit], |row| row.get::<_, String>(0))?;
            let mut tasks = Vec::new();
            for body in rows {
                tasks.extend(serde_json::from_str(&body?));
            }
            Ok(tasks)
        })
        .await
    }

    /// Appends to the audit log.
    pub(crate) async fn audit(&self, row: AuditRow) -> Result<(), Problem> {
        self.run(move |db| {
            db.execute(
                "INSERT INTO audit(at, token, name, role, method, path, status)
                 VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    i64::try_from(row.at).unwrap_or(i64::MAX),
                    row.token,
                    row.name,
                    row.role,
                    row.method,
                    row.path,
                    row.status
                ],
            )?;
            let last = db.last_insert_rowid();
            db.execute("DELETE FROM audit WHERE id <= ?1", [last - AUDIT_KEPT])?;
            Ok(())
        })
        .await
    }

    /// Audit entries before `before`, newest first.
    pub(crate) async fn audited(&self, before: i64, limit: u32) -> Result<Vec<AuditRow>, Problem> {
        self.run(move |db| {
            let mut select = db.prepare(
                "SELECT id, at, token, name, role, method, path, status FROM audit
                 WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
            )?;
            let rows = select.query_map(params![before, limit], |row| {
                Ok(AuditRow {
                    id: row.get(0)?,
                    at: u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0),
                    token: row.get(2)?,
                    name: row.get(3)?,
                    role: row.get(4)?,
                    method: row.get(5)?,
                    path: row.get(6)?,
                    status: row.get(7)?,
                })
            })?;
            rows.collect()
        })
        .await
    }

    /// Claims an idempotency key of one token for the request with this hash.
    pub(crate) async fn claim(
        &self,
        token: String,
        key: String,
        request: Vec<u8>,
        now: u64,
    ) -> Result<Claim, Problem> {
        self.run(move |db| {
            let transaction = db.transaction()?;
            let old = i64::try_from(now.saturating_sub(ANSWER_MS)).unwrap_or(i64::MAX);
            transaction
                .execute("DELETE FROM answer WHERE created < ?1 AND status IS NOT NULL", [old])?;
            let found = transaction
                .query_row(
                    "SELECT request, status, location, content_type, body FROM answer
                     WHERE token = ?1 AND key = ?2",
                    params![token, key],
                    |row| {
                        let known: Vec<u8> = row.get(0)?;
                        let status: Option<u16> = row.get(1)?;
                        Ok(match status {
                            _ if known != request => Claim::Mismatch,
                            None => Claim::Running,
                            Some(status) => Claim::Again(Answer {
                                status,
                                location: row.get(2)?,
                                content_type: row.get(3)?,
                                body: row.get(4)?,
                            }),
                        })
                    },
                )
                .optional()?;
            if let Some(claim) = found {
                return Ok(claim);
            }
            transaction.execute(
                "INSERT INTO answer(token, key, request, created) VALUES(?1, ?2, ?3, ?4)",
                params![token, key, request, i64::try_from(now).unwrap_or(i64::MAX)],
            )?;
            transaction.commit()?;
            Ok(Claim::Run)
        })
        .await
    }

    /// Stores the answer of a claimed key; `None` gives the key free for a retry.
    pub(crate) async fn settle(
        &self,
        token: String,
        key: String,
        answer: Option<Answer>,
    ) -> Result<(), Problem> {
        self.run(move |db| {
            match answer {
                Some(answer) => db.execute(
                    "UPDATE answer SET status = ?3, location = ?4, content_type = ?5, body = ?6
                     WHERE token = ?1 AND key = ?2",
                    params![
                        token,
                        key,
                        answer.status,
                        answer.location,
                        answer.content_type,
                        answer.body
                    ],
                )?,
                None => db.execute(
                    "DELETE FROM answer WHERE token = ?1 AND key = ?2 AND status IS NULL",
                    params![token, key],
                )?,
            };
            Ok(())
        })
        .await
    }
}

pub(crate) fn internal(e: impl std::fmt::Display) -> Problem {
    Problem::new(Code::Internal, format!("An internal step failed: {e}."))
}
