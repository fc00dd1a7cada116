//! Many volumes on one datastore: what listing, starting, checking and the API's answers cost with them.
//!
//! Most volumes are linked clones of one snapshot, which is how many volumes come to be. The clients ask as
//! consoles and scripts do: mostly for pages and single objects, now and then a change.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::Shale;

use crate::Options;
use crate::contestant::{self, STORE};
use crate::report::Report;
use crate::stats::{median, percentile};

/// One clone request makes this many.
const BATCH: usize = 500;
const CLIENTS: usize = 16;
/// Requests of each client.
const EACH: usize = 200;
/// Volumes of one snapshot.
const SET: usize = 50;
/// What is measured of a change beside its answer, which names a task.
const TO_ITS_END: &str = "an operation, to its end";
/// Linked clones that are made one at a time at both ends, for comparison.
const ALONE: usize = 5;

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    if options.without_shale {
        return Ok(());
    }
    let volumes = usize::try_from(options.volumes)?;
    let scratch = options.scratch(&options.dir)?;
    let mut shale = contestant::shale(scratch.path())?;
    shale.volume("base", STORE, "64M")?;
    shale.snapshot("golden", "base")?;
    let few = idle(&shale)?;
    let first = clones_alone(&shale, "first")?;
    let begin = Instant::now();
    for from in (0..volumes).step_by(BATCH) {
        let count = BATCH.min(volumes - from);
        let names: Vec<String> = (from..from + count).map(|n| format!("v{n:05}")).collect();
        let mut words = vec!["volume", "clone", "base", "--snapshot", "golden"];
        words.extend(names.iter().flat_map(|name| ["--name", name]));
        shale.cli(&words)?;
        report.progress(&[format!("{} volumes", from + count), format!("{:.1?}", begin.elapsed())]);
    }
    for from in (0..volumes / 10).step_by(SET) {
        let names: Vec<String> = (from..from + SET).map(|n| format!("v{n:05}")).collect();
        let mut words = vec!["snapshot", "create", "one"];
        words.extend(names.iter().flat_map(|name| ["--volume", name]));
        shale.cli(&words)?;
    }
    report.progress(&[format!("made in {:.1?}", begin.elapsed())]);
    let last = clones_alone(&shale, "last")?;

    let mut lists = Vec::new();
    for _ in 0..options.rounds {
        let begin = Instant::now();
        shale.cli(&["volume", "list"])?;
        lists.push(begin.elapsed().as_secs_f64());
    }
    report.progress(&[format!("list {lists:.3?} s")]);
    let begin = Instant::now();
    shale.cli(&["datastore", "check", STORE])?;
    let check = begin.elapsed().as_secs_f64();
    report.progress(&[format!("check {check:.3} s")]);
    shale.down()?;
    let begin = Instant::now();
    shale.serve()?;
    shale.cli(&["volume", "show", "v00000"])?;
    let start = begin.elapsed().as_secs_f64();
    report.progress(&[format!("start {start:.3} s")]);
    let many = idle(&shale)?;
    let memory = [resident(shale.node_pid()?)?, resident(shale.serve_pid()?)?];
    let answers = clients(&shale, volumes)?;

    report.section(
        "Many volumes",
        &format!(
            "{} volumes, linked clones of one snapshot, and {} snapshots of them on one datastore. Start: from \
             `shale serve` until `shale volume show` has answered, page cache warm. The API: {CLIENTS} \
             clients at once, of 20 requests 10 pages of 100, 6 single volumes, and a volume created, \
             snapshotted and deleted: the answer names a task, whose end is waited for before the next request.",
            volumes,
            volumes / 10,
        ),
    );
    let judged = |value: f64, aim: f64| {
        format!("< {aim}: {}", if value < aim { "reached" } else { "**missed**" })
    };
    let list = median(&lists);
    let (few, many) = (&few, &many);
    let mut rows = vec![
        vec!["`volume list`, s".into(), format!("{list:.3}"), judged(list, 0.2)],
        vec!["start, s".into(), format!("{start:.2}"), judged(start, 3.0)],
        vec!["`datastore check`, s".into(), format!("{check:.2}"), String::new()],
        vec!["one linked clone, first, s".into(), format!("{first:.3}"), String::new()],
        vec!["one linked clone, last, s".into(), format!("{last:.3}"), String::new()],
        vec![
            "threads and descriptors of the node, few volumes".into(),
            format!("{}, {}", few.0, few.1),
            String::new(),
        ],
        vec![
            "threads and descriptors of the node, all volumes".into(),
            format!("{}, {}", many.0, many.1),
            String::new(),
        ],
        vec!["memory of the node, MiB".into(), format!("{:.0}", memory[0]), String::new()],
        vec!["memory of the controller, MiB".into(), format!("{:.0}", memory[1]), String::new()],
    ];
    for (kind, times) in answers {
        let high = percentile(&times, 0.99);
        let row = format!("{kind}, ms: median, 99 %");
        let aim = if kind == TO_ITS_END { String::new() } else { judged(high, 50.0) };
        rows.push(vec![row, format!("{:.1}, {:.1}", median(&times), high), aim]);
    }
    for row in &rows {
        report.progress(row);
    }
    report.table(&["", "measured", "aim"].map(str::to_owned), &rows);
    Ok(())
}

/// Median seconds of one linked clone.
fn clones_alone(shale: &Shale, prefix: &str) -> Result<f64> {
    let mut seconds = Vec::new();
    for n in 0..ALONE {
        let name = format!("{prefix}{n}");
        let begin = Instant::now();
        shale.cli(&["volume", "clone", "base", "--snapshot", "golden", "--name", &name])?;
        seconds.push(begin.elapsed().as_secs_f64());
    }
    Ok(median(&seconds))
}

/// Threads and descriptors of the node.
fn idle(shale: &Shale) -> Result<(usize, usize)> {
    let node = shale.node_pid()?;
    let count = |what: &str| -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{node}/{what}"))?.count())
    };
    Ok((count("task")?, count("fd")?))
}

/// Resident memory in MiB.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let word = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
    Ok(word.parse::<f64>()? / 1024.0)
}

/// Milliseconds of each kind of request.
type Times = Vec<(&'static str, Vec<f64>)>;

fn clients(shale: &Shale, volumes: usize) -> Result<Times> {
    let (address, token) = (shale.url().trim_start_matches("http://").to_owned(), shale.token()?);
    let results: Vec<Result<Vec<(&'static str, f64)>>> = std::thread::scope(|scope| {
        let client = |n| {
            let (address, token) = (&address, &token);
            scope.spawn(move || Client::connect(address, token)?.work(n, volumes))
        };
        let running: Vec<_> = (0..CLIENTS).map(client).collect();
        running.into_iter().map(|thread| thread.join().expect("a client panicked")).collect()
    });
    let mut all = Vec::new();
    for result in results {
        all.extend(result?);
    }
    let kinds = ["list", "show", "create", "snapshot", "delete"];
    let of = |kind: &str| all.iter().filter(|(k, _)| *k == kind).map(|(_, ms)| *ms).collect();
    let mut times: Times = kinds.iter().map(|kind| (*kind, of(kind))).collect();
    let answers = all.iter().filter(|(kind, _)| *kind != TO_ITS_END);
    times.push(("all answers", answers.map(|(_, ms)| *ms).collect()));
    times.push((TO_ITS_END, of(TO_ITS_END)));
    times.retain(|(_, of_kind): &(_, Vec<f64>)| !of_kind.is_empty());
    Ok(times)
}

/// A connection to the API that stays open.
struct Client {
    stream: BufReader<TcpStream>,
    head: String,
}

impl Client {
    fn connect(address: &str, token: &str) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let head = format!("Host: {address}\r\nAuthorization: Bearer {token}\r\n");
        Ok(Self { stream: BufReader::new(stream), head })
    }

    fn work(mut self, client: usize, volumes: usize) -> Result<Vec<(&'static str, f64)>> {
        let mut times = Vec::new();
        let mut cursor = String::new();
        for n in 0..EACH {
            let name = format!("c{client}-{}", n / 20);
            let any = format!("v{:05}", (client * 7919 + n * 104_729) % volumes);
            let (kind, method, path, body) = match n % 20 {
                5 => (
                    "create",
                    "POST",
                    "volumes".to_owned(),
                    format!(
                        r#"{{"name":"{name}","datastore":"{STORE}","size":67108864,"kind":"thin"}}"#
                    ),
                ),
                10 => (
                    "snapshot",
                    "POST",
                    "snapshots".to_owned(),
                    format!(r#"{{"name":"s","volumes":["{name}"]}}"#),
                ),
                15 => ("delete", "DELETE", format!("volumes/{name}"), String::new()),
                2 | 6 | 9 | 12 | 16 | 19 => {
                    ("show", "GET", format!("volumes/{any}"), String::new())
                }
                _ => ("list", "GET", format!("volumes?limit=100{cursor}"), String::new()),
            };
            let begin = Instant::now();
            let answer = self.ask(method, &path, &body)?;
            times.push((kind, begin.elapsed().as_secs_f64() * 1000.0));
            if kind == "list" {
                let next = serde_json::from_slice::<serde_json::Value>(&answer)?["next"].take();
                cursor = next.as_str().map_or_else(String::new, |next| format!("&cursor={next}"));
            } else if kind != "show" {
                let task = serde_json::from_slice::<serde_json::Value>(&answer)?;
                let id = task["id"].as_str().context("a task")?;
                let ended = self.ask("GET", &format!("tasks/{id}?wait=60"), "")?;
                let task = serde_json::from_slice::<serde_json::Value>(&ended)?;
                ensure!(task["state"] == "success", "{kind} {name}: {task}");
                times.push((TO_ITS_END, begin.elapsed().as_secs_f64() * 1000.0));
            }
        }
        Ok(times)
    }

    fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<Vec<u8>> {
        let request = format!(
            "{method} /api/v1/{path} HTTP/1.1\r\n{}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.head,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.trim().to_owned();
        let mut length = None;
        loop {
            line.clear();
            ensure!(self.stream.read_line(&mut line)? > 0, "{path}: the answer was cut off");
            match line.trim_end().split_once(':') {
                None => break,
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = Some(value.trim().parse::<usize>()?);
                }
                Some(_) => {}
            }
        }
        let mut answer = vec![0; length.with_context(|| format!("{path}: {status}: no length"))?];
        self.stream.read_exact(&mut answer)?;
        let ok = status.split(' ').nth(1).is_some_and(|code| code.starts_with('2'));
        ensure!(ok, "{method} {path}: {status}: {}", String::from_utf8_lossy(&answer));
        Ok(answer)
    }
}
