//! Imports: a new volume from disks that stand elsewhere, layer by layer, rewritten into our layout.
//!
//! ```text
//!   Incoming (the node: files, NBD, a stream) ──chunks──► Target, one a layer ──► ONE record
//! ```
//! Where the bytes come from is not known here, and nothing of it is trusted: chunks are bounded, and
//! a source that fails, or is cancelled, leaves nothing behind.

use image::{MAX_SECTORS, NewImage, SECTOR};
use io::{ByteCount, Io};

use crate::catalog::{Catalog, check_name};
use crate::env::Progress;
use crate::error::{CatalogError, Code, Result};
use crate::intent::NewLayer;
use crate::layer;
use crate::record::{MAX_SNAPSHOTS, Snapshot, VolumeKind, VolumeRecord};
use crate::target::{Chunk, SizeKnown, Target, check_chunk};
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
            for (at, layer) in layers.iter().enumerate() {
                let new = begun.intent.creates[at];
                let size =
                    self.fill_layer(&new, kind, layer.size, at, from, before, progress).await?;
                if layer.size.is_none() {
                    // The intent on the datastore undoes by the layer's name; its size is only told here.
                    begun.intent.creates[at].size = size;
                    begun.puts[0].size = size;
                }
                before += size;
            }
            Ok(())
        }
        .await;
        let made = self.conclude(begun, built).await?;
        drop(names);
        one(made)
    }

    /// The record of the new volume, and its layers.
    fn imported(
        &self,
        name: String,
        kind: VolumeKind,
        layers: &[IncomingLayer],
    ) -> (VolumeRecord, Vec<NewLayer>) {
        let size = |layer: &IncomingLayer| layer.size.map_or(SECTOR, |size| size.0);
        let last = layers.last().map_or(SECTOR, size);
        let mut record = self.new_record(name, last, kind, None);
        let base = record.current.layer;
        record.layers.clear();
        let (mut creates, mut parent, mut on) = (Vec::new(), None, None);
        for layer in layers {
            let uuid = if parent.is_none() { base } else { self.env().new_uuid() };
            record.layers.push(uuid);
            let fixed = record.fixed_layer == Some(uuid);
            let owner = record.uuid;
            creates.push(NewLayer { layer: uuid, parent, size: size(layer), fixed, owner });
            parent = Some(uuid);
            if let Some(name) = &layer.snapshot {
                let snapshot = Snapshot {
                    uuid: self.env().new_uuid(),
                    name: name.clone(),
                    created: self.env().now_ms(),
                    parent: on,
                    layer: uuid,
                    size: size(layer),
                    set: None,
                };
                on = Some(snapshot.uuid);
                record.snapshots.push(snapshot);
            }
            record.current.layer = uuid;
        }
        record.current.parent = on;
        (record, creates)
    }

    #[expect(clippy::too_many_arguments, reason = "one layer's part of one operation")]
    async fn fill_layer(
        &self,
        new: &NewLayer,
        kind: VolumeKind,
        size: Option<ByteCount>,
        at: usize,
        from: &mut dyn Incoming,
        before: u64,
        progress: &dyn Progress,
    ) -> Result<u64> {
        let reserve = kind != VolumeKind::Thin && self.store().capabilities().reserve;
        let now = self.env().now_ms();
        let most = size.map_or(MAX_SECTORS.bytes(), |size| size.0);
        let known = if size.is_some() { SizeKnown::Now } else { SizeKnown::AtTheEnd };
        let plan = layer::plan_new(&NewLayer { size: most, ..*new }, now)?;
        let file = layer::make_file(self.store(), new.layer).await?;
        let mut to = Target::over(file, plan, known, reserve).await?;
        loop {
            if progress.cancelled() {
                return Err(cancelled());
            }
            match from.next(at).await? {
                Next::Chunk(chunk) => {
                    check_chunk(&chunk, most)?;
                    to.put(&chunk).await?;
                }
                Next::Hole => {}
                Next::End => break,
            }
            progress.advance(before + from.done(at));
        }
        let size = size.map_or_else(|| from.size(at), |size| size.0);
        check_size(size)?;
        self.complete(to, NewLayer { size, ..*new }, now, progress).await?;
        progress.advance(before + size);
        Ok(size)
    }

    /// Writes the zeros that nothing brought, and closes.
    async fn complete(
        &self,
        mut to: Target,
        new: NewLayer,
        now: u64,
        progress: &dyn Progress,
    ) -> Result<()> {
        for block in to.unfilled(new.size) {
            if progress.cancelled() {
                return Err(cancelled());
            }
            to.skip(block).await?;
        }
        let plan: NewImage = layer::plan_new(&new, now)?;
        to.close(plan).await
    }
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
