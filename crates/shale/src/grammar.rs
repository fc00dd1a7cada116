//! What can be said: noun verb. The help of every command is kept in tests/grammar.txt.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use model::{
    ExportFormat, ImportFormat, Name, Protocol, Reference, Role, Size, TaskState, Threshold,
    TimeOfDay, VolumeKind, Weekday,
};

/// Thin, snapshottable, cloneable disks for virtual machines.
#[derive(Debug, Parser)]
#[command(name = "shale", version, max_term_width = 100, after_help = EXITS)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXITS: &str = "Exit status: 0 ok, 1 failed, 2 usage, 3 not found, 4 conflict, busy or \
                     refused, 5 no space, 6 denied, 7 time-out (the task goes on).\n\
                     Environment: SHALE_URL and SHALE_TOKEN name a server and the token for it; \
                     without them, those of the data directory are used.";

/// Where the system is, and how to print.
#[derive(Clone, Debug, Args)]
pub(crate) struct Place {
    /// Data directory; default: $XDG_DATA_HOME/shale, or /var/lib/shale as root
    #[arg(long, global = true, value_name = "DIR", env = "SHALE_DATA", hide_env = true)]
    pub(crate) data: Option<PathBuf>,
    /// Address of the server
    #[arg(long, global = true, value_name = "URL", env = "SHALE_URL", hide_env = true)]
    pub(crate) url: Option<String>,
    /// How to print
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Format,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns
    Table,
    /// More columns
    Wide,
    /// JSON, sizes in bytes
    Json,
    /// YAML, sizes in bytes
    Yaml,
    /// Names only
    Name,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the system: REST, console, and a node beside it
    Serve(Serve),
    /// Run this host's node (`serve` starts it by itself)
    Node(Node),
    /// Stop the server and its node, with every connection to volumes
    Down(Down),
    /// Say what this host has of what is needed, and what to do about the rest; changes nothing
    #[command(after_help = DOCTOR)]
    Doctor(Doctor),
    /// Storage to keep volumes on
    #[command(subcommand)]
    Datastore(Datastore),
    /// Virtual disks
    #[command(subcommand)]
    Volume(Volume),
    /// Points in time of volumes
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Frozen volumes to make others from
    #[command(subcommand)]
    Template(Template),
    /// Work that takes time
    #[command(subcommand)]
    Task(Task),
    /// What needs a person
    #[command(subcommand)]
    Alarm(Alarm),
    /// Who may do what
    #[command(subcommand)]
    Token(Token),
    /// Print a completion script
    Completion {
        /// For which shell
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where to listen; loopback only
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7070")]
    pub(crate) listen: SocketAddr,
    /// Start no node: one runs on the same data directory, kept up by systemd or by hand
    #[arg(long)]
    pub(crate) no_node: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Node {
    /// Begin a session of its own, so that it outlives the terminal it was started from
    #[arg(long)]
    pub(crate) session: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Down {}

const DOCTOR: &str = "Exit status: 0 if all that is required is there, 1 otherwise (such lines say \
                      MISSING; -o wide shows what is required). Run it as the user that the node \
                      runs as.";

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Look at this directory as a place for a datastore; may be repeated
    #[arg(long = "dir", value_name = "PATH")]
    pub(crate) dirs: Vec<PathBuf>,
}

/// Whether to wait for the work's end.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Waiting {
    /// Wait until the work has ended (the default)
    #[arg(long, overrides_with = "no_wait")]
    pub(crate) wait: bool,
    /// Print the task and do not wait
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Stop waiting after this long and exit with 7; the task goes on
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
}

/// Only try it out.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Try {
    /// Change nothing; print what it would take, free and move
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Consent.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Consent {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Datastore {
    /// Make a datastore in a directory, or adopt the one that is there
    Create {
        name: Name,
        /// An existing directory
        #[arg(long)]
        dir: PathBuf,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// List datastores
    #[command(visible_alias = "ls")]
    List,
    /// Show a datastore
    Show { name: Reference },
    /// Change when a datastore is an alarm, and what it refuses; a PERCENT of its size, or none
    Set {
        name: Reference,
        /// Alarm when more than this is promised to guests; none at first
        #[arg(long, value_name = "PERCENT", required_unless_present_any = ["overcommit_limit", "low", "critical"])]
        overcommit_alarm: Option<Threshold>,
        /// Refuse what would promise more than this; none at first
        #[arg(long, value_name = "PERCENT")]
        overcommit_limit: Option<Threshold>,
        /// Alarm when less than this is free; 10% at first
        #[arg(long, value_name = "PERCENT")]
        low: Option<Threshold>,
        /// Critical alarm when less than this is free; 3.3% at first
        #[arg(long, value_name = "PERCENT")]
        critical: Option<Threshold>,
    },
    /// Check every object of a datastore
    Check {
        name: Reference,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Remove a datastore that holds no volumes
    Delete {
        name: Reference,
        #[command(flatten)]
        consent: Consent,
        #[command(flatten)]
        tried: Try,
        #[command(flatten)]
        waiting: Waiting,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    /// Make a volume
    Create {
        name: Name,
        #[arg(long)]
        datastore: Reference,
        /// What a guest sees: 10G, 512M, or bytes
        #[arg(long)]
        size: Size,
        /// thin, lazy or fixed
        #[arg(long, default_value = "thin")]
        kind: VolumeKind,
        #[command(flatten)]
        tried: Try,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// List volumes
    #[command(visible_alias = "ls")]
    List {
        /// Only those on this datastore
        #[arg(long)]
        datastore: Option<Reference>,
    },
    /// Show a volume
    Show { name: Reference },
    /// Give a volume another name
    Rename {
        name: Reference,
        new_name: Name,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Make a volume larger
    Resize {
        name: Reference,
        #[arg(long)]
        size: Size,
        #[command(flatten)]
        tried: Try,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Make a volume thin, lazy or fixed
    Convert {
        name: Reference,
        /// thin, lazy or fixed
        #[arg(long)]
        kind: VolumeKind,
        /// Delete snapshots that the kind cannot keep; --dry-run tells how many
        #[arg(long)]
        lose_snapshots: bool,
        #[command(flatten)]
        tried: Try,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Delete a volume and its snapshots
    Delete {
        name: Reference,
        #[command(flatten)]
        consent: Consent,
        #[command(flatten)]
        tried: Try,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Open a way to a volume, and print it
    Connect {
        name: Reference,
        /// nbd or vhost-user
        #[arg(long, default_value = "nbd")]
        protocol: Protocol,
        /// Listen on a loopback TCP port instead of a unix socket
        #[arg(long)]
        tcp: bool,
        /// Show this snapshot instead of the current state
        #[arg(long, requires = "read_only")]
        snapshot: Option<Reference>,
        /// Refuse writes
        #[arg(long)]
        read_only: bool,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Close the ways to a volume, or the one to a snapshot of it
    Disconnect {
        name: Reference,
        /// Only the connection of this snapshot; the others go on
        #[arg(long)]
        snapshot: Option<Reference>,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Make linked clones (or full copies) of a volume
    Clone {
        name: Reference,
        #[command(flatten)]
        copies: Copies,
        /// From this snapshot instead of the current state
        #[arg(long)]
        snapshot: Option<Reference>,
        #[command(flatten)]
        tried: Try,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Make a volume of a disk that stands elsewhere: a file, an NBD server, a pipe
    Import {
        name: Name,
        #[arg(long)]
        datastore: Reference,
        /// A path on the node's host, nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH, or - for
        /// standard input
        #[arg(long, value_name = "SOURCE", allow_hyphen_values = true)]
        from: String,
        /// auto, raw, vhd, vhdx, qcow2, vmdk or vdi
        #[arg(long, default_value = "auto")]
        format: ImportFormat,
        /// thin, lazy or fixed
        #[arg(long, default_value = "thin")]
        kind: VolumeKind,
        /// Import the parents of a differencing VHD too, as snapshots; they lie in the same folder
        #[arg(long)]
        chain: bool,
        /// Let a qcow2 image read the backing files that it names, whichever they are
        #[arg(long)]
        allow_backing: bool,
        #[command(flatten)]
        tried: Try,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Write a volume into files on the node's host
    Export {
        name: Reference,
        /// Path of the new file, or of the new folder for --with-snapshots, or - for standard output
        #[arg(long, value_name = "PATH", allow_hyphen_values = true)]
        to: String,
        /// vhd, vhd-fixed, raw, qcow2, vmdk, vhdx or vdi
        #[arg(long, default_value = "vhd")]
        format: ExportFormat,
        /// This snapshot instead of the current state
        #[arg(long)]
        snapshot: Option<Reference>,
        /// Write a folder of VHDs, one a layer, each naming its parent
        #[arg(long)]
        with_snapshots: bool,
        /// With --with-snapshots: every snapshot, not only those it stands on
        #[arg(long, requires = "with_snapshots")]
        all_branches: bool,
        /// Replace a file that is there
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Make full copies of a volume
    Copy {
        name: Reference,
        #[command(flatten)]
        copies: FullCopies,
        /// From this snapshot instead of the current state
        #[arg(long)]
        snapshot: Option<Reference>,
        #[command(flatten)]
        tried: Try,
        #[command(flatten)]
        waiting: Waiting,
    },
}

/// What to make of a volume or template.
#[derive(Debug, Args)]
pub(crate) struct Copies {
    #[command(flatten)]
    pub(crate) full: FullCopies,
    /// Share the source's data (the default)
    #[arg(long, conflicts_with = "full")]
    pub(crate) linked: bool,
    /// Copy the source's data
    #[arg(id = "full", long = "full")]
    pub(crate) is_full: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FullCopies {
    /// Name of the new volume; may be repeated
    #[arg(id = "new", long = "name", value_name = "NEW", required = true)]
    pub(crate) names: Vec<Name>,
    /// Make this many, named NEW-1, NEW-2 and so on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) count: Option<u32>,
    /// Kind of a full copy; default: the source's
    #[arg(long)]
    pub(crate) kind: Option<VolumeKind>,
    /// Where a full copy goes; default: beside the source
    #[arg(long)]
    pub(crate) datastore: Option<Reference>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Snapshot volumes at one point in time, all or none
    Create {
        name: Name,
        /// A volume; may be repeated
        #[arg(long = "volume", value_name = "VOLUME", required = true)]
        volumes: Vec<Reference>,
        /// Let what lazy and fixed volumes write from now on take space as it grows
        #[arg(long)]
        no_reserve: bool,
        #[command(flatten)]
        tried: Try,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// List snapshots
    #[command(visible_alias = "ls")]
    List {
        /// Only those of this volume
        #[arg(long)]
        volume: Option<Reference>,
    },
    /// Show a volume's snapshots as a tree, with the place it is at
    Tree {
        #[arg(long)]
        volume: Reference,
    },
    /// Bring a volume back to a snapshot; what was written since is lost
    Revert {
        name: Reference,
        #[arg(long)]
        volume: Reference,
        #[command(flatten)]
        consent: Consent,
        #[command(flatten)]
        tried: Try,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Delete a snapshot; what later states need of it is kept
    Delete {
        name: Reference,
        #[arg(long)]
        volume: Reference,
        #[command(flatten)]
        consent: Consent,
        #[command(flatten)]
        tried: Try,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Snapshots by the clock, with retention
    #[command(subcommand)]
    Schedule(Schedule),
    /// What differs between two points in time
    Diff {
        #[arg(long)]
        volume: Reference,
        /// The earlier snapshot; default: an empty disk
        #[arg(long)]
        from: Option<Reference>,
        /// The later snapshot; default: the current state
        #[arg(long)]
        to: Option<Reference>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Schedule {
    /// Make snapshots of a volume by the clock and keep the newest; replaces the schedule it has
    #[command(after_help = RETENTION)]
    Set {
        #[arg(long)]
        volume: Reference,
        /// Make one every hour, and keep the newest N of them
        #[arg(long, value_name = "N", required_unless_present_any = ["daily", "weekly"])]
        hourly: Option<u32>,
        /// Make one every day, and keep the newest N of them
        #[arg(long, value_name = "N")]
        daily: Option<u32>,
        /// Make one every week, and keep the newest N of them
        #[arg(long, value_name = "N")]
        weekly: Option<u32>,
        /// When, on the local clock of the server's host; hourly ones at its minute
        #[arg(long, value_name = "HH:MM", default_value = "00:00")]
        at: TimeOfDay,
        /// On which day the weekly ones
        #[arg(long, value_name = "DAY", default_value = "sunday")]
        weekday: Weekday,
        /// Let what lazy and fixed volumes write after each snapshot take space as it grows
        #[arg(long)]
        no_reserve: bool,
        #[command(flatten)]
        tried: Try,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Show a volume's schedule and its next runs
    Show {
        #[arg(long)]
        volume: Reference,
    },
    /// List all schedules
    #[command(visible_alias = "ls")]
    List,
    /// Take a volume's schedule away; its snapshots stay
    Clear {
        #[arg(long)]
        volume: Reference,
        #[command(flatten)]
        waiting: Waiting,
    },
}

const RETENTION: &str = "One snapshot serves all rules that are due at its moment. Only snapshots that a \
                         schedule made are deleted by it, never those that linked clones stand on. All \
                         rules together keep at most 31: a volume has 32 snapshots, and the next one is \
                         made before the oldest goes. While a volume is connected, deleted snapshots \
                         keep their places until they are merged after a disconnect.";

#[derive(Debug, Subcommand)]
pub(crate) enum Template {
    /// Make a template of a volume, or of one of its snapshots
    Create {
        name: Name,
        /// The volume; without --snapshot it becomes the template
        #[arg(long, value_name = "VOLUME")]
        from: Reference,
        /// Of this snapshot, leaving the volume as it is
        #[arg(long)]
        snapshot: Option<Reference>,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// List templates
    #[command(visible_alias = "ls")]
    List {
        /// Only those on this datastore
        #[arg(long)]
        datastore: Option<Reference>,
    },
    /// Make volumes from a template, all or none
    Deploy {
        name: Reference,
        #[command(flatten)]
        copies: Copies,
        #[command(flatten)]
        tried: Try,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Delete a template
    Delete {
        name: Reference,
        #[command(flatten)]
        consent: Consent,
        #[command(flatten)]
        tried: Try,
        #[command(flatten)]
        waiting: Waiting,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// List tasks, newest first
    #[command(visible_alias = "ls")]
    List {
        /// Only those in this state
        #[arg(long)]
        state: Option<TaskState>,
    },
    /// Show a task
    Show { id: Reference },
    /// Follow a task to its end, or all tasks
    Watch { id: Option<Reference> },
    /// Ask a task to end early
    Cancel {
        id: Reference,
        #[command(flatten)]
        waiting: Waiting,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Alarm {
    /// List alarms, the worst first
    #[command(visible_alias = "ls")]
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token and print its secret, this once
    Create {
        name: Name,
        /// admin, storage-admin, operator or reader
        #[arg(long)]
        role: Role,
    },
    /// List tokens
    #[command(visible_alias = "ls")]
    List,
    /// Revoke a token; it stops working at once
    #[command(visible_alias = "delete")]
    Revoke {
        name: Reference,
        #[command(flatten)]
        consent: Consent,
    },
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::{Command, CommandFactory, Parser};

    fn help(text: &mut String, command: &mut Command, path: &str) {
        let path = format!("{path} {}", command.get_name());
        *text += &format!("==={path}\n{}\n", command.render_help());
        for sub in command.get_subcommands_mut() {
            if sub.get_name() != "help" {
                help(text, sub, &path);
            }
        }
    }

    #[test]
    fn the_grammar_is_committed_as_it_is() {
        let mut command = Cli::command().term_width(100);
        command.build();
        let mut now = String::new();
        help(&mut now, &mut command, "");
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/grammar.txt");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == now,
            "tests/grammar.txt is not what the code says: run `UPDATE=1 cargo test -p shale \
             grammar` and read the difference"
        );
    }

    #[test]
    fn lines_that_must_work_and_lines_that_must_not() {
        Cli::command().debug_assert();
        let good = [
            "serve --data DIR --listen 127.0.0.1:7070",
            "serve --no-node",
            "doctor --dir PATH --dir OTHER -o json",
            "datastore create NAME --dir PATH",
            "datastore set NAME --overcommit-alarm 150% --overcommit-limit 300% --low 10% --critical 3.3%",
            "datastore set NAME --overcommit-limit none",
            "volume create NAME --datastore DS --size 10G --kind thin",
            "volume create NAME --datastore DS --size 10G --kind eager",
            "volume connect NAME -o json",
            "volume connect NAME --protocol vhost-user --snapshot S --read-only -o json",
            "volume resize NAME --size 1.5T --dry-run",
            "volume convert NAME --kind fixed --lose-snapshots --dry-run",
            "volume clone A --name B --linked",
            "volume clone A --name B --name C --full --kind fixed --datastore D",
            "volume copy fast/A --name B",
            "volume import NAME --datastore DS --from /x.vhd --chain --kind lazy",
            "volume import NAME --datastore DS --from - --format raw",
            "volume export NAME --to /x.qcow2 --format qcow2 --snapshot S --force",
            "volume export NAME --to /dir --with-snapshots --all-branches",
            "snapshot create NAME --volume V --volume W",
            "snapshot create NAME --volume V --no-reserve --dry-run",
            "volume import NAME --datastore DS --from /x.vhd --chain --dry-run",
            "snapshot revert S --volume V --yes --no-wait",
            "snapshot diff --volume V --from a --to b",
            "snapshot schedule set --volume V --hourly 12 --daily 7 --weekly 4 --at 02:00 --weekday sunday",
            "snapshot schedule set --volume V --daily 7 --no-reserve --dry-run",
            "snapshot schedule show --volume V",
            "snapshot schedule ls -o json",
            "snapshot schedule clear --volume V",
            "template deploy NAME --name NEW --linked --count 10",
            "template deploy NAME --name NEW --full --kind lazy",
            "task watch",
            "task list --state running -o name",
            "token create NAME --role storage-admin",
            "token delete NAME --yes",
            "completion bash",
            "down",
        ];
        for line in good {
            let words = std::iter::once("shale").chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        let bad = [
            "",
            "volume",
            "volume create NAME --datastore DS --size 10X --kind thin",
            "volume create NAME --datastore DS --size -1 --kind thin",
            "volume create a/b --datastore DS --size 1G",
            "volume create NAME --datastore DS --size 1G --kind thick",
            "volume connect NAME --snapshot S",
            "volume connect NAME --protocol iscsi",
            "volume clone A",
            "volume clone A --name B --linked --full",
            "volume clone A --name B --count 0",
            "datastore set NAME",
            "datastore set NAME --low 10",
            "datastore set NAME --low 0%",
            "snapshot create NAME",
            "snapshot schedule set --volume V",
            "snapshot schedule set --volume V --daily 7 --at 24:00",
            "snapshot schedule set --volume V --weekly 7 --weekday someday",
            "token create NAME --role root",
            "volume list -o xml",
            "serve --listen localhost",
        ];
        for line in bad {
            let words = std::iter::once("shale").chain(line.split(' ').filter(|w| !w.is_empty()));
            let error = Cli::try_parse_from(words).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
