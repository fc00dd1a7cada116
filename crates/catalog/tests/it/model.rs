//! Random sequences of operations against a model in memory.

use std::collections::BTreeMap;

use catalog::{Code, CopyTarget, LeafSpace, MAX_SEGMENT, Source, Unwatched, VolumeKind};
use io::ByteCount;
use io::sim::SplitMix64;

use crate::world::{Crash, Lab, MIB, Node, PROBES, SIZE};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Point {
    size: u64,
    sectors: BTreeMap<u64, u8>,
}

impl Point {
    fn content(&self) -> Vec<u8> {
        let inside = PROBES.into_iter().filter(|probe| *probe < self.size / 512);
        inside.map(|probe| self.sectors.get(&probe).copied().unwrap_or(0)).collect()
    }
}

#[derive(Clone, Debug, Default)]
struct Volume {
    now: Point,
    snapshots: BTreeMap<String, Point>,
    /// Volumes linked to it stand here by name of their origin.
    origin: Option<String>,
}

#[derive(Default)]
struct Model {
    volumes: BTreeMap<String, Volume>,
    made: u32,
}

fn pick<'a, T>(rng: &mut SplitMix64, from: &'a [T]) -> Option<&'a T> {
    let at = rng.between(0, (from.len() as u64).checked_sub(1)?);
    from.get(usize::try_from(at).unwrap())
}

impl Model {
    async fn step(&mut self, node: &Node, rng: &mut SplitMix64) {
        self.made += 1;
        let fresh = format!("n{}", self.made);
        let names: Vec<String> = self.volumes.keys().cloned().collect();
        let Some(name) = pick(rng, &names).cloned() else {
            return self.create(node, fresh, rng).await;
        };
        let id = node.id(&name);
        let snapshots: Vec<String> = self.volumes[&name].snapshots.keys().cloned().collect();
        let snapshot = pick(rng, &snapshots).cloned();
        let volume = self.volumes.get_mut(&name).unwrap();
        match (rng.between(0, 15), snapshot) {
            (0, _) if names.len() < 6 => self.create(node, fresh, rng).await,
            (1, _) => {
                let size = volume.now.size + MIB;
                if size < 8 * MIB {
                    node.catalog.resize(id, ByteCount(size)).await.unwrap();
                    volume.now.size = size;
                }
            }
            (2..=4, _) => {
                match node.catalog.snapshot_create(&[id], &fresh, LeafSpace::AsTheKind).await {
                    Ok(_) => drop(volume.snapshots.insert(fresh, volume.now.clone())),
                    Err(error) => assert_eq!(error.code, Code::SnapshotLimit),
                }
            }
            (5 | 6, Some(snapshot)) => {
                let to = node.snap_id(&name, &snapshot);
                node.catalog.snapshot_revert(id, to).await.unwrap();
                volume.now = volume.snapshots[&snapshot].clone();
            }
            (7 | 8, Some(snapshot)) => {
                let gone = node.snap_id(&name, &snapshot);
                node.catalog.snapshot_delete(id, gone, &Unwatched).await.unwrap();
                volume.snapshots.remove(&snapshot);
            }
            (9, Some(snapshot)) if names.len() < 8 => {
                let from = Source { volume: id, snapshot: Some(node.snap_id(&name, &snapshot)) };
                node.catalog.clone_linked(from, vec![fresh.clone()]).await.unwrap();
                let now = volume.snapshots[&snapshot].clone();
                let clone = Volume { now, origin: Some(name), ..Volume::default() };
                self.volumes.insert(fresh, clone);
            }
            (10, _) if names.len() < 8 => {
                let target = CopyTarget { name: fresh.clone(), kind: None, template: false };
                let from = Source { volume: id, snapshot: None };
                node.catalog.copy_full(from, target, &Unwatched).await.unwrap();
                let copy = Volume { now: volume.now.clone(), ..Volume::default() };
                self.volumes.insert(fresh, copy);
            }
            (11, _) => {
                let linked = self.volumes.values().any(|v| v.origin.as_ref() == Some(&name));
                match node.catalog.delete_volume(id).await {
                    Ok(()) => drop(self.volumes.remove(&name)),
                    Err(error) => {
                        assert_eq!(error.code, Code::HasDependents);
                        assert!(linked, "{name} is held by a clone");
                    }
                }
            }
            _ => {
                let inside: Vec<u64> =
                    PROBES.into_iter().filter(|p| *p < volume.now.size / 512).collect();
                let sector = *pick(rng, &inside).unwrap();
                let byte = u8::try_from(rng.between(1, 255)).unwrap();
                node.write(&name, sector, byte).await;
                volume.now.sectors.insert(sector, byte);
            }
        }
    }

    async fn create(&mut self, node: &Node, name: String, rng: &mut SplitMix64) {
        let kinds = [VolumeKind::Thin, VolumeKind::Thin, VolumeKind::Lazy, VolumeKind::Fixed];
        node.create(&name, SIZE, *pick(rng, &kinds).unwrap()).await;
        let now = Point { size: SIZE, ..Point::default() };
        self.volumes.insert(name, Volume { now, ..Volume::default() });
    }

    async fn compare(&self, node: &Node, when: &str) {
        let view = node.view().await;
        assert_eq!(
            view.keys().collect::<Vec<_>>(),
            self.volumes.keys().collect::<Vec<_>>(),
            "{when}"
        );
        for (name, volume) in &self.volumes {
            let seen = &view[name];
            assert_eq!(seen.content, volume.now.content(), "{when}: {name}");
            let points: BTreeMap<String, (u64, Vec<u8>)> = volume
                .snapshots
                .iter()
                .map(|(s, point)| (s.clone(), (point.size, point.content())))
                .collect();
            let found: BTreeMap<String, (u64, Vec<u8>)> = seen
                .snapshots
                .iter()
                .map(|(s, (_, size, c))| (s.clone(), (*size, c.clone())))
                .collect();
            assert_eq!(found, points, "{when}: {name}");
        }
    }
}

#[test]
fn random_operations_match_the_model() {
    for seed in 0..12 {
        let segment = if seed % 2 == 0 { MAX_SEGMENT } else { 2 * MIB };
        let mut lab = Lab::segmented(seed, ByteCount::mib(1024), segment);
        let mut rng = SplitMix64::new(seed);
        let mut model = Model::default();
        for life in 0..3u64 {
            lab.executor.block_on(async {
                let node = lab.open().await;
                model.compare(&node, &format!("seed {seed}, life {life} begins")).await;
                for step in 0..40 {
                    model.step(&node, &mut rng).await;
                    let when = format!("seed {seed}, life {life}, step {step}");
                    assert_eq!(node.catalog.audit().await.unwrap(), Vec::<String>::new(), "{when}");
                    if step % 8 == 7 {
                        model.compare(&node, &when).await;
                    }
                }
                node.assert_sound(&format!("seed {seed}, life {life}")).await;
            });
            // Everything that was answered survives a power cut.
            lab = lab.crashed(seed + 100 * life, Crash::Cut);
        }
    }
}
