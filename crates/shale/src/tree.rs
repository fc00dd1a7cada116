//! A volume's snapshots as a tree for people.

use model::{SnapshotNode, SnapshotTree};

const HERE: &str = "● you are here";

/// The tree, one line a snapshot.
pub(crate) fn render(tree: &SnapshotTree) -> String {
    let mut text = format!("{}\n", tree.volume_name);
    // the current state hangs below its snapshot like a snapshot does
    let here_at_root = tree.current_snapshot.is_none();
    branch(&mut text, &tree.roots, here_at_root, "");
    text
}

fn branch(text: &mut String, nodes: &[SnapshotNode], here: bool, prefix: &str) {
    let count = nodes.len() + usize::from(here);
    for (at, node) in nodes.iter().enumerate() {
        let last = at + 1 == count;
        let (corner, below) = if last { ("└── ", "    ") } else { ("├── ", "│   ") };
        let snapshot = &node.snapshot;
        let created = snapshot.created.to_string();
        let created = created.get(..16).unwrap_or(&created).replace('T', " ");
        let used = snapshot.used.human();
        *text += &format!("{prefix}{corner}{}  {created}  {used}\n", snapshot.name);
        branch(text, &node.children, node.here, &format!("{prefix}{below}"));
    }
    if here {
        *text += &format!("{prefix}└── {HERE}\n");
    }
}

#[cfg(test)]
mod tests {
    use super::render;
    use model::{Name, Size, Snapshot, SnapshotTree, Timestamp, Uuid};

    fn snapshot(n: u128, name: &str, parent: Option<u128>) -> Snapshot {
        Snapshot {
            id: Uuid::from_u128(n),
            name: Name::new(name).unwrap(),
            volume: Uuid::nil(),
            volume_name: Name::new("web").unwrap(),
            parent: parent.map(Uuid::from_u128),
            size: Size::from_bytes(1 << 30),
            used: Size::from_bytes(1 << 20),
            merge_bytes: None,
            set: None,
            scheduled: None,
            clones: 0,
            created: Timestamp::from_unix_ms(u64::try_from(n).unwrap() * 60_000),
        }
    }

    #[test]
    fn trees_look_like_this() {
        let all = vec![
            snapshot(1, "a", None),
            snapshot(2, "b", Some(1)),
            snapshot(3, "c", Some(1)),
            snapshot(4, "d", Some(3)),
        ];
        let name = || Name::new("web").unwrap();
        let here = Some(Uuid::from_u128(3));
        let tree = SnapshotTree::build(Uuid::nil(), name(), here, all);
        let expected = "\
web
└── a  1970-01-01 00:01  1 MiB
    ├── b  1970-01-01 00:02  1 MiB
    └── c  1970-01-01 00:03  1 MiB
        ├── d  1970-01-01 00:04  1 MiB
        └── ● you are here
";
        assert_eq!(render(&tree), expected);
        let empty = SnapshotTree::build(Uuid::nil(), name(), None, Vec::new());
        assert_eq!(render(&empty), "web\n└── ● you are here\n");
    }
}
