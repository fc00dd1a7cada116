//! The protocol of one connection, on a thread of its own: the `vhost` crate waits in its reads, and a front
//! end may send half a message and no more. All it says is done on the home thread, one after the other.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use futures_channel::mpsc::UnboundedSender;
use futures_util::future::LocalBoxFuture;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Backend, BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut,
};

use super::blk;
use super::front::{Front, Refusal};
use super::memory::{Described, MAX_REGIONS};

/// Something to do on the home thread.
pub(crate) type Job = Box<dyn FnOnce(Rc<Front>) -> LocalBoxFuture<'static, ()> + Send>;

/// What is served of the protocol.
fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::RESET_DEVICE
}

/// Serves a connection until the front end goes or breaks the protocol. `ended` is dropped then.
pub(crate) fn serve(socket: UnixStream, jobs: UnboundedSender<Job>, disk: &str) {
    let session = Session { jobs, disk: disk.to_owned(), channel: None };
    let mut handler = BackendReqHandler::from_stream(socket, Arc::new(Mutex::new(session)));
    loop {
        match handler.handle_request() {
            Ok(()) => {}
            Err(Error::Disconnected) => return,
            Err(Error::SocketRetry(_)) => {}
            // Said when it was refused. It may be waiting for an answer that there is none of.
            Err(Error::ReqHandlerError(_)) => return,
            Err(error) => {
                tracing::debug!(disk, %error, "a vhost-user front end is let go");
                return;
            }
        }
    }
}

struct Session {
    jobs: UnboundedSender<Job>,
    disk: String,
    /// The front end's own ear, which it minds being closed.
    channel: Option<Backend>,
}

impl Session {
    /// Has something done on the home thread and waits for it.
    fn ask<T, F, Fut>(&self, job: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Front>) -> Fut + Send + 'static,
        Fut: Future<Output = std::result::Result<T, Refusal>> + 'static,
    {
        let (answer, answered): (SyncSender<std::result::Result<T, Refusal>>, _) = sync_channel(1);
        let job: Job = Box::new(move |front| {
            Box::pin(async move {
                // a session that ended meanwhile wants no answer
                let _unwanted = answer.send(job(front).await);
            })
        });
        self.jobs.unbounded_send(job).map_err(|_closed| Error::Disconnected)?;
        match answered.recv() {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(why)) => {
                tracing::warn!(disk = self.disk, why, "a vhost-user front end is refused");
                Err(Error::ReqHandlerError(std::io::Error::other(why)))
            }
            Err(_gone) => Err(Error::Disconnected),
        }
    }

    /// The same where it takes no waiting.
    fn tell<T, F>(&self, job: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Front) -> std::result::Result<T, Refusal> + Send + 'static,
    {
        self.ask(move |front| async move { job(&front) })
    }
}

fn described(region: &VhostUserMemoryRegion) -> Described {
    Described {
        guest: region.guest_phys_addr,
        len: region.memory_size,
        user: region.user_addr,
        offset: region.mmap_offset,
    }
}

fn described_single(region: &VhostUserSingleMemoryRegion) -> Described {
    described(region)
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.ask(|front| async move {
            front.reset().await;
            Ok(())
        })
    }

    fn get_features(&mut self) -> Result<u64> {
        self.tell(|front| Ok(front.features()))
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.tell(move |front| front.set_features(features))
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let regions = regions.iter().map(described).zip(files).collect();
        self.tell(move |front| front.set_memory(regions))?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.tell(move |front| front.set_size(index, num))
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let log = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        self.tell(move |front| front.set_addresses(index, [descriptor, available, used], log))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.tell(move |front| front.set_base(index, base))
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let next = self.ask(move |front| async move { front.stop(index).await })?;
        Ok(VhostUserVringState::new(index, next))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.tell(move |front| front.kick(index.into(), fd))
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.tell(move |front| front.set_call(index.into(), fd))
    }

    fn set_vring_err(&mut self, _index: u8, _fd: Option<File>) -> Result<()> {
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(protocol_features())
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(blk::QUEUES.into())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.tell(move |front| front.enable(index, enable))
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        self.tell(move |front| Ok(front.config(offset, size)))
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        let bytes = bytes.to_vec();
        self.tell(move |front| front.set_config(offset, &bytes))
    }

    fn set_backend_req_fd(&mut self, channel: Backend) {
        self.channel = Some(channel);
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("a disk has no screen"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("a disk shares no objects"))
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, descriptors) = (wanted.num_queues, wanted.queue_size);
        let (len, file) = self.tell(move |front| front.new_inflight(queues, descriptors))?;
        Ok((VhostUserInflight::new(len, 0, queues, descriptors), file))
    }

    fn set_inflight_fd(&mut self, told: &VhostUserInflight, file: File) -> Result<()> {
        let (offset, queues, descriptors) = (told.mmap_offset, told.num_queues, told.queue_size);
        self.tell(move |front| front.set_inflight(file, offset, queues, descriptors))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let region = described_single(region);
        self.tell(move |front| front.add_memory(region, file))?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let region = described_single(region);
        self.tell(move |front| front.remove_memory(region))
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("a disk's state is its content"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("a disk's state is its content"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("a disk shares no memory"))
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let (offset, len) = (log.mmap_offset, log.mmap_size);
        self.tell(move |front| front.set_log(file, offset, len))
    }
}
