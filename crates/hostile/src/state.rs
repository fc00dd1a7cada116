//! State files of the node and of the controller: read, or refused with what to do; never a panic.

use std::cell::RefCell;
use std::path::PathBuf;

use rusqlite::{Connection, params};
use tempfile::TempDir;

use crate::input::Input;

thread_local! {
    static DIR: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

/// A directory of this thread's, removed with it.
fn dir() -> PathBuf {
    DIR.with_borrow_mut(|dir| {
        dir.get_or_insert_with(|| tempfile::tempdir().expect("a directory")).path().to_owned()
    })
}

/// One of the node's three files, chosen by the first byte; it stays as it is.
pub fn node_state(bytes: &[u8]) {
    starts(bytes);
}

/// Whether a node could start with the file.
fn starts(bytes: &[u8]) -> bool {
    let mut input = Input(bytes);
    let names = ["connections.json", "datastores.json", "transfers.json"];
    let name = names[usize::from(input.u8()) % names.len()];
    let data = dir();
    std::fs::create_dir_all(data.join("node")).expect("a directory");
    let path = data.join("node").join(name);
    std::fs::write(&path, input.0).expect("a file");
    let told = node::check_state(&data);
    if let Err(error) = &told {
        let text = error.to_string();
        assert!(text.contains(name), "'{text}' does not name {name}");
    }
    assert_eq!(std::fs::read(&path).expect("a file"), input.0, "reading changes nothing");
    std::fs::remove_file(&path).expect("a file");
    told.is_ok()
}

/// The controller's database: a whole file, or, after any other first byte than SQLite's, lines of
/// documents and tasks in a sound one.
///
/// ```text
///   KEY SPACE BODY     a document of the inventory
///   task BODY          a finished task
/// ```
pub fn controller_state(bytes: &[u8]) {
    let path = dir().join("controller.db");
    for beside in ["controller.db", "controller.db-wal", "controller.db-shm"] {
        match std::fs::remove_file(dir().join(beside)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
    }
    if bytes.starts_with(b"SQLite format 3") {
        std::fs::write(&path, bytes).expect("a file");
    } else {
        fill(&path, &String::from_utf8_lossy(bytes));
    }
    if let Err(problem) = controller::check_state(&path) {
        assert_ne!(problem.code, model::Code::Internal, "{problem}");
        assert!(problem.hint.is_some(), "'{problem}' does not say what to do");
    }
}

fn fill(path: &std::path::Path, lines: &str) {
    controller::check_state(path).expect("a new database");
    let mut db = Connection::open(path).expect("a database");
    let all = db.transaction().expect("a transaction");
    for (number, line) in lines.lines().enumerate() {
        let (key, body) = line.split_once(' ').unwrap_or((line, ""));
        let number = i64::try_from(number).expect("few lines");
        let sql = if key == "task" {
            "INSERT OR REPLACE INTO task(id, created, body) VALUES(?1, ?2, ?3)"
        } else {
            "INSERT OR REPLACE INTO document(key, revision, body) VALUES(?1, ?2, ?3)"
        };
        let id = if key == "task" { number.to_string() } else { key.to_owned() };
        all.execute(sql, params![id, number, body]).expect("a row");
    }
    all.commit().expect("all rows");
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_reach_what_they_are_for() {
        let seed = |name| {
            let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/node_state/");
            super::starts(&std::fs::read(format!("{dir}{name}")).expect("a seed"))
        };
        for taken in ["connections", "datastores", "transfers"] {
            assert!(seed(taken), "{taken}");
        }
        assert!(!seed("later-format"));
    }
}
