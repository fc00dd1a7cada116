//! Imports and exports, as operations: what is asked for, checked; then the catalog does it.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use blockio::FileDevice;
use catalog::{
    Branches, CatalogError, FlatFormat, Incoming, IncomingLayer, NewImport, Progress as _,
    ReadPoint, stored_runs,
};
use export::{NbdAddress, NbdClient};
use futures_channel::mpsc;
use io::{BlockFile, ByteCount};
use model::{
    Change, Code, ExportFormat, ExportVolume, ImportFormat, ImportSource, ImportVolume, ObjectKind,
    ObjectRef, Operation, Problem, Reference, Size,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::stores::to_value;
use super::view::catalog_kind;
use super::{Control, catalog_problem};
use crate::events::now;
use crate::problem::Outcome;
use crate::tasks::{About, Progress};
use crate::transfer::places::Place;
use crate::transfer::qemu::{self, Driver, Serving};
use crate::transfer::sources::{self, Disk, Sources};
use crate::transfer::stream::{self, Part, Stream};
use crate::transfer::{about, chain};

/// The source of an import that is sent afterwards.
const STREAM: &str = "-";
/// How long a server that an export writes to may say nothing.
const NBD_LIMIT: std::time::Duration = std::time::Duration::from_secs(120);

/// What an import reads, with its layers.
struct Opened {
    from: Box<dyn Incoming>,
    layers: Vec<IncomingLayer>,
    stored: u64,
    /// Ends with the import.
    _served: Option<qemu::Served>,
}

impl Control {
    pub(crate) fn about_import(&self, request: &ImportVolume) -> Outcome<About> {
        let store = self.store(self.resolve_store(&request.datastore)?)?;
        let features = model::StoreFeatures {
            reserve: store.opened()?.handle.capabilities().reserve,
            ..model::StoreFeatures::default()
        };
        model::support(Operation::VolumeImport, request.kind, false, features).map_err(
            |reason| {
                let detail =
                    format!("{} cannot be imported to {}: {reason}.", request.name, store.name());
                Problem::new(Code::Unsupported, detail)
            },
        )?;
        if request.chain && !matches!(request.format, ImportFormat::Auto | ImportFormat::Vhd) {
            return Err(Problem::new(
                Code::BadRequest,
                format!("A chain is imported of VHDs, not of {}.", request.format),
            ));
        }
        if request.chain && (request.source == STREAM || request.source.starts_with("nbd")) {
            return Err(Problem::new(Code::BadRequest, "A chain is imported of files.")
                .hint("give the path of its newest file on the node's host"));
        }
        let name = request.name.to_string();
        let object = ObjectRef { kind: ObjectKind::Volume, id: Uuid::nil(), name };
        Ok(About::new(Operation::VolumeImport, object))
    }

    pub(crate) async fn import_volume(
        self: Rc<Self>,
        request: ImportVolume,
        progress: Rc<Progress>,
    ) -> Outcome<Value> {
        let store = self.store(self.resolve_store(&request.datastore)?)?;
        let catalog = store.catalog()?;
        progress.running("opening");
        let task = progress.id();
        let opened = match request.source.as_str() {
            STREAM => Ok(self.expect_stream(&request, &progress)),
            _ => self.open_source(&request).await,
        };
        let opened = opened.map_err(|problem| during(&request, problem));
        let made = match opened {
            Ok(mut opened) => {
                let new = NewImport {
                    name: request.name.to_string(),
                    kind: catalog_kind(request.kind),
                    layers: opened.layers.clone(),
                    stored: ByteCount(opened.stored),
                };
                let made = catalog.import(new, &mut *opened.from, &*progress).await;
                made.map_err(catalog_problem)
            }
            Err(problem) => Err(problem),
        };
        self.uploads.borrow_mut().remove(&task);
        let record = made?;
        let view = self.volume_view(&store, &record).await;
        self.shared.events.tell(Change::Volume(view.clone()));
        self.tell_store(store.id()).await;
        to_value(&view)
    }

    /// What [`Self::import_volume`] would read; nothing is written. A stream tells nothing beforehand.
    pub(crate) async fn import_source(&self, request: ImportVolume) -> Outcome<ImportSource> {
        self.about_import(&request)?;
        let opened = self.open_source(&request).await.map_err(|p| during(&request, p))?;
        let size = |layer: &IncomingLayer| layer.size.map_or(0, |size| size.0);
        let all = opened.layers.iter().map(size).fold(0, u64::saturating_add);
        Ok(ImportSource {
            size: Size::from_bytes(opened.layers.last().map_or(0, size)),
            layers_size: Size::from_bytes(all),
            stored: Size::from_bytes(opened.stored),
            snapshots: opened.layers.into_iter().filter_map(|layer| layer.snapshot).collect(),
        })
    }

    async fn open_source(&self, request: &ImportVolume) -> Outcome<Opened> {
        let source = request.source.as_str();
        if source == STREAM {
            return Err(Problem::new(Code::BadRequest, "A stream tells its size at its end."));
        }
        if source.starts_with("nbd://") || source.starts_with("nbd+unix://") {
            if !matches!(request.format, ImportFormat::Auto | ImportFormat::Raw) {
                return Err(Problem::new(
                    Code::BadRequest,
                    format!("An NBD server shows a disk, not a file in {}.", request.format),
                )
                .hint("leave the format out"));
            }
            let address = NbdAddress::parse(source)
                .map_err(|error| catalog_problem(sources::from_nbd(&error)))?;
            let disk = Disk::nbd(&self.ring, source.to_owned(), address).await;
            return self.one(disk.map_err(catalog_problem)?, None).await;
        }
        let place = self.places.source(source, &self.out_of_bounds()).await?;
        let file = self.places.open(&place).await?;
        if request.chain {
            return self.open_parents(place, file).await;
        }
        self.open_file(request, place, file).await
    }

    async fn open_file(
        &self,
        request: &ImportVolume,
        place: Place,
        file: FileDevice,
    ) -> Outcome<Opened> {
        let path = place.path.clone();
        let shown = path.display();
        if request.format == ImportFormat::Raw {
            return self.one(Disk::raw(&path, file), None).await;
        }
        let (head, tail) =
            sources::ends(&file).await.map_err(|error| catalog_problem(error.during(&shown)))?;
        let sniffed = image::sniff(&head, &tail);
        let refused = |code, detail: String, hint: &str| Err(Problem::new(code, detail).hint(hint));
        let driver = Driver::of(&path, &sniffed, request.allow_backing).map_err(catalog_problem)?;
        let said = match (request.format, &sniffed) {
            (ImportFormat::Auto, image::Sniffed::Unknown) => {
                return self.one(Disk::raw(&path, file), None).await;
            }
            (ImportFormat::Auto, image::Sniffed::Ambiguous) => {
                return refused(
                    Code::Refused,
                    format!("{shown} looks like a VHD and like something else."),
                    "say what it is with --format",
                );
            }
            (ImportFormat::Auto, image::Sniffed::Other(what)) => {
                return refused(
                    Code::Unsupported,
                    format!("{shown} looks like {what}, not like a disk."),
                    "unpack or convert it first; say --format raw if it is a raw disk",
                );
            }
            (ImportFormat::Auto, _) => driver,
            (ImportFormat::Vhd, _) => None,
            (ImportFormat::Qcow2, _) => Some(Driver::Qcow2),
            (ImportFormat::Vmdk, _) => Some(Driver::Vmdk),
            (ImportFormat::Vhdx, _) => Some(Driver::Vhdx),
            (ImportFormat::Vdi, _) => Some(Driver::Vdi),
            (ImportFormat::Raw, _) => unreachable!("raw files were taken above"),
        };
        let Some(said) = said else {
            let opened = sources::open_vhd(&file).await.and_then(|image| {
                chain::alone(&path, &image)?;
                Ok(image)
            });
            let image = opened.map_err(|error| catalog_problem(error.during(&shown)))?;
            return self.one(Disk::vhd(&path, file, image), None).await;
        };
        // The references of a file were judged by what it is: it must be what was said.
        if driver != Some(said) {
            return refused(
                Code::Corrupt,
                format!("{shown} is not in the format {}.", said.name()),
                "leave --format out, and its own bytes tell",
            );
        }
        self.open_by_qemu(&path, said, request.allow_backing).await
    }

    async fn open_by_qemu(&self, path: &Path, driver: Driver, backing: bool) -> Outcome<Opened> {
        let at = path.to_owned();
        let file = self.ring.run_blocking(move || std::fs::File::open(at)).await;
        let file = file.map_err(|error| {
            Problem::new(Code::IoError, format!("{}: {error}.", path.display()))
        })?;
        let how = Serving { driver, write: false, backing };
        let socket = self.shared.data.transfer_socket(Uuid::new_v4());
        let served = qemu::serve(&self.ring, path, file, how, socket).await;
        let served = served.map_err(catalog_problem)?;
        match sources::served(&self.ring, path, served.socket.clone()).await {
            Ok(disk) => self.one(disk, Some(served)).await,
            Err(error) => Err(catalog_problem(served.explain(&self.ring, error).await)),
        }
    }

    async fn one(&self, disk: Disk, served: Option<qemu::Served>) -> Outcome<Opened> {
        let stored = disk.stored().await.map_err(catalog_problem)?;
        let layers = vec![IncomingLayer { size: Some(ByteCount(disk.size)), snapshot: None }];
        let from = Box::new(Sources::new(&self.ring, vec![disk]));
        Ok(Opened { from, layers, stored, _served: served })
    }

    async fn open_parents(&self, leaf: Place, file: FileDevice) -> Outcome<Opened> {
        let members = chain::find(&self.places, leaf, file).await.map_err(catalog_problem)?;
        let names = chain::snapshot_names(&members);
        let mut layers = Vec::new();
        let mut stored = 0_u64;
        for (at, member) in members.iter().enumerate() {
            let size = Some(ByteCount(member.disk.size));
            layers.push(IncomingLayer { size, snapshot: names.get(at).cloned() });
            stored = stored.saturating_add(member.disk.stored().await.map_err(catalog_problem)?);
        }
        let disks = members.into_iter().map(|member| member.disk).collect();
        let from = Box::new(Sources::new(&self.ring, disks));
        Ok(Opened { from, layers, stored, _served: None })
    }

    fn expect_stream(&self, request: &ImportVolume, progress: &Rc<Progress>) -> Opened {
        let (sender, parts) = mpsc::channel(stream::IN_FLIGHT);
        self.uploads.borrow_mut().insert(progress.id(), sender);
        let from = Stream::new(&self.ring, parts, Rc::clone(progress), request.format);
        let layers = vec![IncomingLayer { size: None, snapshot: None }];
        Opened { from: Box::new(from), layers, stored: 0, _served: None }
    }

    /// Where the parts of a stream go that a task waits for.
    pub(crate) fn upload(&self, task: Uuid) -> Outcome<mpsc::Sender<Part>> {
        self.uploads.borrow_mut().remove(&task).ok_or_else(|| {
            let detail = format!("Task {task} waits for no data, or has it already.");
            Problem::new(Code::Conflict, detail)
                .hint("begin an import from '-', and send the data to its task once")
        })
    }

    // --- exports ---

    pub(crate) fn about_export(&self, id: Uuid, request: &ExportVolume) -> Outcome<About> {
        if request.all_branches && !request.with_snapshots {
            return Err(Problem::new(Code::BadRequest, "Only a folder holds several branches.")
                .hint("add with_snapshots (--with-snapshots)"));
        }
        if request.with_snapshots && request.format != ExportFormat::Vhd {
            return Err(Problem::new(
                Code::BadRequest,
                format!("Snapshots are exported as VHDs, not as {}.", request.format),
            ));
        }
        self.about(Operation::VolumeExport, id)
    }

    pub(crate) async fn export_volume(
        self: Rc<Self>,
        id: Uuid,
        request: ExportVolume,
        progress: Rc<Progress>,
    ) -> Outcome<Value> {
        let (store, _, source) = self.source(id, request.snapshot.as_ref())?;
        let catalog = store.catalog()?;
        progress.running("opening");
        let bounds = self.out_of_bounds();
        let (force, folder) = (request.force, request.with_snapshots);
        if folder {
            let which = if request.all_branches { Branches::All } else { Branches::Own };
            let reader = catalog.read_branches(source, which).await.map_err(catalog_problem)?;
            let making = self.places.make(&request.to, force, folder, &bounds).await?;
            let made = self.write_branches(&catalog, &reader, &making.temporary, &progress).await;
            let target = making.target.clone();
            self.places.conclude(making, false, made).await?;
            let files: Vec<_> = reader
                .files()
                .iter()
                .map(|file| json!({ "name": file.name, "size": file.size.0 }))
                .collect();
            return Ok(json!({ "path": target, "files": files }));
        }
        let mut point = catalog.read_point(source).await.map_err(catalog_problem)?;
        let making = self.places.make(&request.to, force, folder, &bounds).await?;
        let made = self.write_flat(&mut point, request.format, &making.temporary, &progress).await;
        let (target, size) = (making.target.clone(), point.size());
        self.places.conclude(making, force, made).await?;
        Ok(json!({ "path": target, "format": request.format, "size": size }))
    }

    /// What a stream is about: only formats that need no second look at what was sent.
    pub(crate) fn about_stream(&self, id: Uuid, format: ExportFormat) -> Outcome<About> {
        flat(format).ok_or_else(|| {
            Problem::new(Code::Unsupported, format!("{format} cannot be written as a stream."))
                .hint("use raw, vhd or vhd-fixed, or export it to a path")
        })?;
        self.about(Operation::VolumeExport, id)
    }

    pub(crate) async fn stream_volume(
        self: Rc<Self>,
        id: Uuid,
        (format, snapshot): (ExportFormat, Option<Reference>),
        to: mpsc::Sender<Part>,
        progress: Rc<Progress>,
    ) -> Outcome<Value> {
        let mut sink = stream::Sink::new(&self.ring, to, Rc::clone(&progress));
        let (store, _, source) = self.source(id, snapshot.as_ref())?;
        let mut point = store.catalog()?.read_point(source).await.map_err(catalog_problem)?;
        let format = flat(format).expect("asked before the task began");
        let (uuid, now) = (Uuid::new_v4(), now().unix_ms());
        let sent = point.send(&mut sink, format, uuid, now, &*progress).await;
        let sent = match sent {
            Ok(()) => sink.finish().await,
            Err(error) => Err(error),
        };
        sent.map_err(|error| catalog_problem(error.during("cannot export")))?;
        Ok(json!({ "size": point.size() }))
    }

    async fn write_branches(
        &self,
        catalog: &catalog::Catalog,
        reader: &catalog::BranchReader,
        folder: &Path,
        progress: &Progress,
    ) -> Outcome<()> {
        let total = reader.files().iter().map(|file| file.size.0).fold(0, u64::saturating_add);
        catalog::Progress::phase(progress, "exporting", total);
        let mut before = 0;
        for (index, file) in reader.files().iter().enumerate() {
            let path = folder.join(&file.name);
            self.places.create_in(&path).await?;
            let to: Rc<dyn BlockFile> = Rc::new(self.places.open_new(&path).await?);
            let written = catalog.write_branch(reader, index, to, progress, before).await;
            written.map_err(|error| catalog_problem(error.during("cannot export")))?;
            before += file.size.0;
            progress.advance(before);
        }
        Ok(())
    }

    async fn write_flat(
        &self,
        point: &mut ReadPoint,
        format: ExportFormat,
        path: &Path,
        progress: &Progress,
    ) -> Outcome<()> {
        let written = match format {
            ExportFormat::Raw => self.write_own(point, FlatFormat::Raw, path, progress).await?,
            ExportFormat::Vhd => self.write_own(point, FlatFormat::Dynamic, path, progress).await?,
            ExportFormat::VhdFixed => {
                self.write_own(point, FlatFormat::Fixed, path, progress).await?
            }
            ExportFormat::Qcow2 => self.write_by_qemu(point, Driver::Qcow2, path, progress).await,
            ExportFormat::Vmdk => self.write_by_qemu(point, Driver::Vmdk, path, progress).await,
            ExportFormat::Vhdx => self.write_by_qemu(point, Driver::Vhdx, path, progress).await,
            ExportFormat::Vdi => self.write_by_qemu(point, Driver::Vdi, path, progress).await,
        };
        written.map_err(|error| catalog_problem(error.during("cannot export")))
    }

    async fn write_own(
        &self,
        point: &mut ReadPoint,
        format: FlatFormat,
        path: &Path,
        progress: &Progress,
    ) -> Outcome<catalog::Result<()>> {
        let to: Rc<dyn BlockFile> = Rc::new(self.places.open_new(path).await?);
        Ok(point.write(to, format, Uuid::new_v4(), now().unix_ms(), progress).await)
    }

    async fn write_by_qemu(
        &self,
        point: &mut ReadPoint,
        driver: Driver,
        path: &Path,
        progress: &Progress,
    ) -> catalog::Result<()> {
        qemu::create(&self.ring, path, driver, point.size()).await?;
        let at = path.to_owned();
        let open = move || std::fs::File::options().read(true).write(true).open(at);
        let file = self.ring.run_blocking(open).await;
        let file =
            file.map_err(|error| about(path.display(), catalog::Code::Io, &error.to_string()))?;
        let synced = file.try_clone();
        let how = Serving { driver, write: true, backing: false };
        let socket = self.shared.data.transfer_socket(Uuid::new_v4());
        let served = qemu::serve(&self.ring, path, file, how, socket).await?;
        let address = NbdAddress::unix(served.socket.clone());
        let client = self.ring.run_blocking(move || NbdClient::connect(&address, NBD_LIMIT)).await;
        let mut client = match client {
            Ok(client) => client,
            Err(error) => {
                return Err(served.explain(&self.ring, sources::from_nbd(&error)).await);
            }
        };
        if client.size() < point.size() {
            let message = format!("its {} hold {} bytes only", driver.name(), client.size());
            return Err(about(path.display(), catalog::Code::Unsupported, &message));
        }
        catalog::Progress::phase(progress, "exporting", point.size());
        let mut next = point.next_stored(0).await?;
        while let Some(block) = next {
            if progress.cancelled() {
                return Err(CatalogError::new(
                    catalog::Code::Cancelled,
                    "it was cancelled; nothing of it is left",
                ));
            }
            let start = u64::from(block) * sources::BLOCK as u64;
            if let Some(bytes) = point.block(block).await? {
                let write = move || (write_block(&mut client, start, &bytes), client);
                let (written, kept) = self.ring.run_blocking(write).await;
                client = kept;
                written.map_err(|error| sources::from_nbd(&error))?;
            }
            progress.advance((start + sources::BLOCK as u64).min(point.size()));
            next = point.next_stored(block + 1).await?;
        }
        let close = move || client.flush().and_then(|()| client.close());
        let closed = self.ring.run_blocking(close).await;
        closed.map_err(|error| sources::from_nbd(&error))?;
        served.ended(&self.ring).await?;
        let sync = move || synced.and_then(|file| file.sync_all());
        let synced = self.ring.run_blocking(sync).await;
        synced.map_err(|error| about(path.display(), catalog::Code::Io, &error.to_string()))
    }

    /// Directories that belong to the node itself or to a datastore.
    fn out_of_bounds(&self) -> Vec<PathBuf> {
        let data = &self.shared.data;
        let mut dirs = vec![data.root().to_owned(), data.logs().to_owned()];
        dirs.extend(self.all_stores().iter().map(|store| store.entry.dir.clone()));
        dirs.into_iter().map(|dir| dir.canonicalize().unwrap_or(dir)).collect()
    }
}

/// The formats that are written without QEMU.
const fn flat(format: ExportFormat) -> Option<FlatFormat> {
    match format {
        ExportFormat::Raw => Some(FlatFormat::Raw),
        ExportFormat::Vhd => Some(FlatFormat::Dynamic),
        ExportFormat::VhdFixed => Some(FlatFormat::Fixed),
        ExportFormat::Qcow2 | ExportFormat::Vmdk | ExportFormat::Vhdx | ExportFormat::Vdi => None,
    }
}

/// Blocking; zeros are left out, as the image is new.
fn write_block(client: &mut NbdClient, start: u64, bytes: &[u8]) -> export::NbdResult<()> {
    for run in stored_runs(bytes) {
        client.write(start + run.start as u64, &bytes[run])?;
    }
    Ok(())
}

fn during(request: &ImportVolume, mut problem: Problem) -> Problem {
    problem.detail = format!("cannot import {}: {}", request.name, problem.detail);
    problem
}
