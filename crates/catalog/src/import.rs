//! Imports: a new volume from disks that stand elsewhere, layer by layer, rewritten into our layout.
//!
//! ```text
//!   Incoming (the node: files, NBD, a stream) ──chunks──► Target, one a layer ──► ONE record
//! ```
//! Where the bytes come from is not known here, and nothing of it is trusted: chunks are bounded, and
//! a source that fails, or is cancelled, leaves nothing behind.

use image::SECTOR;
use io::{ByteCount, Io};

use crate::catalog::{Catalog, check_name};
use crate::env::Progress;
use crate::error::{CatalogError, Code, Result};
use crate::intent::NewLayer;
use crate::record::{MAX_SNAPSHOTS, Snapshot, VolumeKind, VolumeRecord};
use crate::segments::{Layout, MAX_SEGMENT, Tip};
use crate::snapshots::tip_of;
use crate::target::{Chunk, SizeKnown, check_chunk};
use crate::txn::Plan;
use crate::volumes::{cancelled, check_size, one};

/// A layer of what is imported.
#[derive(Clone, Debug)]
pub struct IncomingLayer {
    /// Its size; None: known at its end. Only a disk of one layer may leave it open.
    pub size: Option<ByteCount>,
    /// The snapshot that it becomes. None for the last one, which is the volume as it is.
    pub snapshot: Option<String>,
}

/// A volume to be made of disks from elsewhere.
#[derive(Clone, Debug)]
pub struct NewImport {
    /// Its name.
    pub name: String,
    /// How it takes space; layers on others are as a snapshot makes them.
    pub kind: VolumeKind,
    /// Its layers, the base first.
    pub layers: Vec<IncomingLayer>,
    /// Bytes that are stored there, as far as they are known.
    pub stored: ByteCount,
}

/// What comes next of a layer.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, and its 2 MiB are on the heap anyway"
)]
pub enum Next {
    /// This.
    Chunk(Chunk),
    /// Nothing yet: what was looked at holds nothing.
    Hole,
    /// The end.
    End,
}

/// Where an import reads.
pub trait Incoming {
    /// What comes next of a layer, in any order. Layers are asked for one after another, the base
    /// first.
    fn next(&mut self, layer: usize) -> Io<'_, Result<Next>>;
    /// How far the layer was read, in bytes of the disk.
    fn done(&self, layer: usize) -> u64;
    /// The size of the layer; asked for after its end where it was not known before.
    fn size(&self, layer: usize) -> u64;
}

impl Catalog {
    /// Makes a volume of what `from` brings: all of it or nothing.
    ///
    /// # Errors
    /// `bad-name`, `name-taken`, `bad-size`, `snapshot-limit`, `no-space`, `unsupported` (lazy where the
    /// store cannot reserve), `cancelled`, and whatever `from` fails with.
    pub async fn import(
        &self,
        new: NewImport,
        from: &mut dyn Incoming,
        progress: &dyn Progress,
    ) -> Result<VolumeRecord> {
        let NewImport { name, kind, layers, stored } = new;
        check_layers(&layers)?;
        self.can_hold(kind)?;
        let names = self.take_names(std::slice::from_ref(&name))?;
        let title = format!("import {name}");
        let known = |layer: &IncomingLayer| layer.size.map_or(0, |size| size.0);
        let whole: u64 = layers.iter().map(known).fold(0, u64::saturating_add);
        let needed = match kind {
            VolumeKind::Thin => stored.0.min(whole),
            VolumeKind::Fixed | VolumeKind::Lazy => whole,
        };
        self.has_room(needed, &title).await?;
        let (record, creates) = self.imported(name, kind, &layers);
        let plan = Plan { title, puts: vec![record], creates, ..Plan::default() };
        let mut begun = self.begin(plan).await?;
        let built = async {
            progress.phase("importing", whole);
            let mut before = 0;
            let mut rest = &mut begun.intent.creates[..];
            for (at, layer) in layers.iter().enumerate() {
                let layout = self.import_layout(layer);
                let (new, others) = rest.split_at_mut(layout.count());
                let part = Part { at, size: layer.size, layout, before };
                let size = self.fill_layer(new, kind, part, from, progress).await?;
                if let (None, [only]) = (layer.size, new) {
                    // The intent on the datastore undoes by the layer's name; its size is only told here.
                    only.size = size;
                    begun.puts[0].size = size;
                }
                rest = others;
                before += size;
            }
            Ok(())
        }
        .await;
        let made = self.conclude(begun, built).await?;
        drop(names);
        one(made)
    }

    /// How a layer divides. One whose size is not known yet has one segment, for now the smallest.
    fn import_layout(&self, layer: &IncomingLayer) -> Layout {
        match layer.size {
            Some(size) => self.new_layout(size.0),
            None => Layout { size: SECTOR, segment: MAX_SEGMENT },
        }
    }

    /// The record of the new volume, and its layers.
    fn imported(
        &self,
        name: String,
        kind: VolumeKind,
        layers: &[IncomingLayer],
    ) -> (VolumeRecord, Vec<NewLayer>) {
        let last = layers.last().expect("an import has at least one layer");
        let mut record = self.new_record(name, self.import_layout(last), kind, None);
        record.layers.clear();
        record.fixed_layers.clear();
        let (mut creates, mut below, mut on) = (Vec::new(), None::<Tip>, None);
        for layer in layers {
            let layout = self.import_layout(layer);
            let new: Vec<NewLayer> = (0..layout.count())
                .map(|at| {
                    let parent = below.as_ref().and_then(|tip| tip.layers().get(at).copied());
                    NewLayer {
                        layer: self.env().new_uuid(),
                        parent,
                        size: layout.size_of(at),
                        fixed: kind == VolumeKind::Fixed && below.is_none(),
                        owner: record.uuid,
                    }
                })
                .collect();
            let tip = tip_of(&new);
            record.layers.extend(tip.layers());
            record.fixed_layers.extend(new.iter().filter(|new| new.fixed).map(|new| new.layer));
            creates.extend(new);
            if let Some(name) = &layer.snapshot {
                let snapshot = Snapshot {
                    uuid: self.env().new_uuid(),
                    name: name.clone(),
                    created: self.env().now_ms(),
                    parent: on,
                    tip: tip.clone(),
                    size: layout.size,
                    set: None,
                    scheduled: None,
                };
                on = Some(snapshot.uuid);
                record.snapshots.push(snapshot);
            }
            below = Some(tip.clone());
            record.current.tip = tip;
        }
        record.current.parent = on;
        (record, creates)
    }

    /// Fills the files of one layer of what is imported; its size.
    async fn fill_layer(
        &self,
        new: &[NewLayer],
        kind: VolumeKind,
        part: Part,
        from: &mut dyn Incoming,
        progress: &dyn Progress,
    ) -> Result<u64> {
        let Part { at, size, before, .. } = part;
        let (known, most) = match size {
            Some(size) => (SizeKnown::Now, size.0),
            // What is not known beforehand is one VHD, however large that may be.
            None => (SizeKnown::AtTheEnd, MAX_SEGMENT),
        };
        let sized: Vec<NewLayer> = match size {
            Some(_) => new.to_vec(),
            None => new.iter().map(|new| NewLayer { size: most, ..*new }).collect(),
        };
        let layout = Layout { size: most, ..part.layout };
        let mut to = self.begin_disk(&sized, layout, kind, known).await?;
        loop {
            if progress.cancelled() {
                return Err(cancelled());
            }
            match from.next(at).await? {
                Next::Chunk(chunk) => {
                    check_chunk(&chunk, most).map_err(|error| match size {
                        Some(_) => error,
                        None => longer_than_a_segment(),
                    })?;
                    to.put(chunk).await?;
                }
                Next::Hole => {}
                Next::End => break,
            }
            progress.advance(before + from.done(at));
        }
        let size = size.map_or_else(|| from.size(at), |size| size.0);
        check_size(size)?;
        let complete: Vec<NewLayer> = match part.size {
            Some(_) => sized,
            None => sized.iter().map(|new| NewLayer { size, ..*new }).collect(),
        };
        to.close(&complete, self.env().now_ms(), progress).await?;
        progress.advance(before + size);
        Ok(size)
    }
}

fn longer_than_a_segment() -> CatalogError {
    let message = format!(
        "what comes is longer than {} GiB, the most that is taken of a disk whose size is not known \
         beforehand",
        MAX_SEGMENT >> 30
    );
    CatalogError::new(Code::BadSize, message).hint("import it from a file, or over NBD")
}

/// One layer's part of an import.
#[derive(Clone, Copy)]
struct Part {
    /// Which layer, counted from the base.
    at: usize,
    /// Its size, where it is known.
    size: Option<ByteCount>,
    /// How it divides.
    layout: Layout,
    /// Bytes of the layers before it.
    before: u64,
}

fn check_layers(layers: &[IncomingLayer]) -> Result<()> {
    let refused = |message: String| Err(CatalogError::new(Code::BadRequest, message));
    let Some((last, below)) = layers.split_last() else {
        return refused("an import has at least one layer".into());
    };
    if last.snapshot.is_some() || below.iter().any(|layer| layer.snapshot.is_none()) {
        return refused("every layer of an import but the last is a snapshot".into());
    }
    if layers.len() > 1 && layers.iter().any(|layer| layer.size.is_none()) {
        return refused("the layers of an import have known sizes".into());
    }
    if layers.len() > MAX_SNAPSHOTS {
        let message =
            format!("the chain has {} layers; {MAX_SNAPSHOTS} are the most", layers.len());
        return Err(CatalogError::new(Code::SnapshotLimit, message)
            .hint("merge some of them where they were made, then import again"));
    }
    for (at, layer) in layers.iter().enumerate() {
        if let Some(size) = layer.size {
            check_size(size.0)?;
        }
        let Some(name) = &layer.snapshot else { continue };
        check_name(name)?;
        if layers.iter().take(at).any(|other| other.snapshot.as_ref() == Some(name)) {
            return refused(format!("two layers of an import are both called {name}"));
        }
    }
    let sizes: Vec<u64> = layers.iter().filter_map(|layer| Some(layer.size?.0)).collect();
    let mut pairs = sizes.iter().zip(sizes.iter().skip(1));
    if let Some((parent, child)) = pairs.find(|(parent, child)| parent > child) {
        let message = format!("a layer of {child} bytes stands on one of {parent} bytes");
        return Err(CatalogError::new(Code::BadSize, message)
            .hint("volumes only grow; make the child at least as large where it was made"));
    }
    Ok(())
}
