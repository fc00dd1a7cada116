//! Plans for layer trees: no plan changes what a snapshot, the leaf or a clone shows.

use std::collections::BTreeMap;

use image::Uuid;
use image::plan::{Layer, LayerTree, Plan, Step, Tip, TreeError, Waiting};

use crate::support::Random;

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

/// `(layer, parent or 0, tip: 's'napshot of the same number, 'l'eaf or 'g'host, clones)`.
fn tree(layers: &[(u128, u128, char, u32)]) -> LayerTree {
    LayerTree::new(layers.iter().map(|(layer, parent, tip, clones)| Layer {
        id: id(*layer),
        parent: (*parent != 0).then(|| id(*parent)),
        tip: match tip {
            's' => Tip::Snapshot(id(*layer)),
            'l' => Tip::Leaf,
            _ => Tip::Ghost,
        },
        foreign_children: *clones,
    }))
    .unwrap()
}

fn steps(plan: &Plan) -> String {
    let short = |id: &Uuid| id.as_u128().to_string();
    let step = |step: &Step| match step {
        Step::Drop(layer) => format!("drop {}", short(layer)),
        Step::Merge { child, into } => format!("merge {} into {}", short(child), short(into)),
        Step::Reparent { layer, to } => format!("{} onto {}", short(layer), short(to)),
    };
    plan.steps.iter().map(step).collect::<Vec<_>>().join(", ")
}

#[test]
fn deletions() {
    let chain = [(1, 0, 's', 0), (2, 1, 's', 0), (3, 2, 's', 0), (4, 3, 'l', 0)];
    let branch = [(1, 0, 's', 0), (2, 1, 's', 0), (3, 1, 's', 0), (4, 3, 'l', 0)];
    let clones = [(1, 0, 's', 2), (2, 1, 's', 0), (3, 2, 'l', 0)];
    for (name, layers, snapshot, expected) in [
        ("the oldest", &chain[..], 1, "merge 2 into 1, 3 onto 1, drop 2"),
        ("one in the middle", &chain, 2, "merge 3 into 2, 4 onto 2, drop 3"),
        ("the newest: its leaf is merged", &chain, 3, "merge 4 into 3, drop 4"),
        ("one with two above stays", &branch, 1, ""),
        ("one with none above goes", &branch, 2, "drop 2"),
        ("one with clones stays", &clones, 1, ""),
    ] {
        assert_eq!(steps(&tree(layers).plan_delete(id(snapshot)).unwrap()), expected, "{name}");
    }
}

#[test]
fn what_waits_says_why() {
    let plan = tree(&[(1, 0, 'g', 0), (2, 1, 's', 0), (3, 1, 'l', 0)]).settle();
    assert_eq!(plan.waiting, [(id(1), Waiting::Shared { children: 2 })]);
    let plan = tree(&[(1, 0, 'g', 1), (2, 1, 'l', 0)]).settle();
    assert_eq!(plan.waiting, [(id(1), Waiting::Shared { children: 2 })]);
    let plan = tree(&[(1, 0, 'g', 0), (2, 1, 's', 1), (3, 2, 'l', 0)]).settle();
    assert_eq!(plan.waiting, [(id(1), Waiting::ClonesAbove { layer: id(2) })]);
    // deleting one of two branches settles the ghost below them
    let two = tree(&[(1, 0, 'g', 0), (2, 1, 's', 0), (3, 1, 'l', 0)]);
    assert_eq!(steps(&two.plan_delete(id(2)).unwrap()), "drop 2, merge 3 into 1, drop 3");
}

#[test]
fn reverts() {
    let chain = tree(&[(1, 0, 's', 0), (2, 1, 's', 0), (3, 2, 'l', 0)]);
    assert_eq!(steps(&chain.plan_revert(id(2), id(9)).unwrap()), "drop 3");
    assert_eq!(steps(&chain.plan_revert(id(1), id(9)).unwrap()), "drop 3");
    // what only the old leaf kept goes with it, and the rest closes up
    let ghosts = tree(&[(1, 0, 's', 0), (2, 1, 'g', 0), (3, 2, 's', 0), (4, 2, 'l', 0)]);
    let plan = ghosts.plan_revert(id(1), id(9)).unwrap();
    assert_eq!(steps(&plan), "drop 4, merge 3 into 2, drop 3");
    assert_eq!(plan.after.leaf().unwrap().parent, Some(id(1)));
    assert_eq!(plan.after.path(id(9)), [id(9), id(1)]);
}

#[test]
fn what_is_no_tree_is_refused() {
    let layer = |layer, parent, tip| Layer {
        id: id(layer),
        parent: Some(id(parent)),
        tip,
        foreign_children: 0,
    };
    let refused = |layers: Vec<Layer>| LayerTree::new(layers).unwrap_err();
    let (ghost, leaf) = (Tip::Ghost, Tip::Leaf);
    assert_eq!(refused(vec![layer(1, 9, ghost), layer(1, 9, leaf)]), TreeError::Duplicate(id(1)));
    assert_eq!(refused(vec![layer(1, 2, ghost), layer(2, 1, leaf)]), TreeError::Circle(id(1)));
    assert_eq!(refused(vec![layer(1, 1, leaf)]), TreeError::Circle(id(1)));
    assert_eq!(refused(vec![layer(1, 9, leaf), layer(2, 9, leaf)]), TreeError::Leaves(2));
    assert_eq!(refused(vec![layer(1, 9, leaf), layer(2, 1, ghost)]), TreeError::LeafInUse(id(1)));
    let whole = tree(&[(1, 0, 's', 0), (2, 1, 'l', 0)]);
    assert_eq!(whole.plan_delete(id(7)), Err(TreeError::NoSnapshot(id(7))));
    assert_eq!(whole.plan_revert(id(1), id(2)), Err(TreeError::Duplicate(id(2))));
}

/// What each layer holds: a value a block, or nothing.
type Contents = BTreeMap<Uuid, [Option<u64>; 4]>;

fn seen(tree: &LayerTree, contents: &Contents, from: Uuid) -> [Option<u64>; 4] {
    let path = tree.path(from);
    std::array::from_fn(|block| path.iter().find_map(|layer| contents[layer][block]))
}

/// What everyone sees who can see something: the leaf, each snapshot, and each layer's clones.
fn views(tree: &LayerTree, contents: &Contents) -> BTreeMap<String, [Option<u64>; 4]> {
    let mut views = BTreeMap::new();
    for layer in tree.layers() {
        let view = seen(tree, contents, layer.id);
        match layer.tip {
            Tip::Leaf => drop(views.insert("leaf".to_owned(), view)),
            Tip::Snapshot(snapshot) => drop(views.insert(format!("snapshot {snapshot}"), view)),
            Tip::Ghost => {}
        }
        if layer.foreign_children > 0 {
            views.insert(format!("clones of {}", layer.id), view);
        }
    }
    views
}

fn execute(tree: &LayerTree, contents: &mut Contents, steps: &[Step]) -> LayerTree {
    let mut tree = tree.clone();
    for step in steps {
        match *step {
            Step::Merge { child, into } => {
                assert_eq!(tree.get(child).unwrap().parent, Some(into));
                assert_eq!(tree.get(into).unwrap().foreign_children, 0, "clones read {into}");
                let moved = contents[&child];
                contents.insert(child, [None; 4]);
                let keeps = contents.get_mut(&into).unwrap();
                for (block, value) in moved.into_iter().enumerate() {
                    keeps[block] = value.or(keeps[block]);
                }
            }
            Step::Reparent { layer, to } => {
                let between = tree.get(layer).unwrap().parent.unwrap();
                assert_eq!(contents[&between], [None; 4], "only an empty layer is stepped over");
                assert_eq!(tree.get(between).unwrap().parent, Some(to));
            }
            Step::Drop(layer) => {
                assert!(tree.children(layer).is_empty(), "{layer} still has children");
                assert_eq!(tree.get(layer).unwrap().tip, Tip::Ghost);
                contents.remove(&layer);
            }
        }
        tree.apply(*step);
    }
    tree
}

/// Random histories of snapshots, clones, deletions and reverts.
#[test]
fn no_plan_changes_what_anyone_sees() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut names = 100u128;
        let mut tree = tree(&[(1, 0, 'l', 0)]);
        let mut contents = Contents::from([(id(1), [None; 4])]);
        for _ in 0..60 {
            names += 1;
            let leaf = tree.leaf().unwrap().id;
            contents.get_mut(&leaf).unwrap()[random.below(4) as usize] = Some(random.next());
            let snapshots: Vec<Uuid> = tree
                .layers()
                .filter_map(|layer| match layer.tip {
                    Tip::Snapshot(snapshot) => Some(snapshot),
                    Tip::Leaf | Tip::Ghost => None,
                })
                .collect();
            let mut layers: Vec<Layer> = tree.layers().cloned().collect();
            let (plan, before) = match (random.below(4), snapshots.as_slice()) {
                (0, [_, ..]) => {
                    let gone = snapshots[random.below(snapshots.len() as u64) as usize];
                    let mut before = views(&tree, &contents);
                    before.remove(&format!("snapshot {gone}"));
                    (tree.plan_delete(gone).unwrap(), before)
                }
                (1, [_, ..]) => {
                    let to = snapshots[random.below(snapshots.len() as u64) as usize];
                    let mut before = views(&tree, &contents);
                    before.insert("leaf".to_owned(), before[&format!("snapshot {to}")]);
                    let plan = tree.plan_revert(to, id(names)).unwrap();
                    contents.insert(id(names), [None; 4]);
                    let parent = layers.iter().find(|layer| layer.tip == Tip::Snapshot(to));
                    let parent = parent.map(|layer| layer.id);
                    layers.iter_mut().find(|layer| layer.id == leaf).unwrap().tip = Tip::Ghost;
                    let tip = Tip::Leaf;
                    layers.push(Layer { id: id(names), parent, tip, foreign_children: 0 });
                    tree = LayerTree::new(layers).unwrap();
                    (plan, before)
                }
                (2, [_, ..]) => {
                    let to = random.below(snapshots.len() as u64) as usize;
                    let tip = Tip::Snapshot(snapshots[to]);
                    let layer = layers.iter_mut().find(|layer| layer.tip == tip).unwrap();
                    // a clone comes, or all of them go
                    layer.foreign_children = if random.one_in(2) { 0 } else { 1 };
                    tree = LayerTree::new(layers).unwrap();
                    (tree.settle(), views(&tree, &contents))
                }
                _ => {
                    layers.iter_mut().find(|layer| layer.id == leaf).unwrap().tip =
                        Tip::Snapshot(id(names));
                    names += 1;
                    let (parent, tip) = (Some(leaf), Tip::Leaf);
                    layers.push(Layer { id: id(names), parent, tip, foreign_children: 0 });
                    contents.insert(id(names), [None; 4]);
                    tree = LayerTree::new(layers).unwrap();
                    (tree.settle(), views(&tree, &contents))
                }
            };
            // tips that the record took away before the steps: what the plan starts from
            let mut start = tree.clone();
            for layer in tree.layers() {
                let gone = match layer.tip {
                    Tip::Snapshot(snapshot) => {
                        !before.contains_key(&format!("snapshot {snapshot}"))
                    }
                    Tip::Leaf | Tip::Ghost => false,
                };
                if gone {
                    let ghosts = start.layers().cloned().map(|mut other| {
                        if other.id == layer.id {
                            other.tip = Tip::Ghost;
                        }
                        other
                    });
                    start = LayerTree::new(ghosts.collect::<Vec<_>>()).unwrap();
                }
            }
            tree = execute(&start, &mut contents, &plan.steps);
            assert_eq!(tree, plan.after, "seed {seed}");
            let after = views(&tree, &contents);
            for (name, view) in &before {
                if name.starts_with("clones") && !after.contains_key(name) {
                    continue;
                }
                assert_eq!(after.get(name), Some(view), "seed {seed}: {name}");
            }
            assert_eq!(tree.settle().steps, [], "seed {seed}: a settled tree is settled");
        }
    }
}
