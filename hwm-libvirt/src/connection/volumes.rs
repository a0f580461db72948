//! libvirt's calls on pools and volumes.

use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt::stream::Stream;
use virt_sys as sys;

use super::error::{Fault, FaultKind};
use super::host::{Host, PoolFacts, Result, VolumeFacts, optional};
use super::stream::{Source, receive, send};
use crate::domain::{DiskFiles, domain_files, volume_files};

impl Host {
    fn pool(&self, name: &str) -> Result<StoragePool> {
        Ok(StoragePool::lookup_by_name(&self.connect, name)?)
    }

    fn find_volume(&self, pool: &str, name: &str) -> Result<Option<StorageVol>> {
        let pool = self.pool(pool)?;
        optional(StorageVol::lookup_by_name(&pool, name))
    }

    fn volume(&self, pool: &str, name: &str) -> Result<StorageVol> {
        Ok(StorageVol::lookup_by_name(&self.pool(pool)?, name)?)
    }

    /// A pool's XML, active or not; none where there is none.
    pub(crate) fn pool_xml(&self, name: &str) -> Result<Option<String>> {
        match optional(StoragePool::lookup_by_name(&self.connect, name))? {
            Some(pool) => Ok(Some(pool.get_xml_desc(0)?)),
            None => Ok(None),
        }
    }

    pub(crate) fn define_pool(&self, xml: &str) -> Result<()> {
        let pool = StoragePool::define_xml(&self.connect, xml, 0)?;
        pool.set_autostart(true)?;
        Ok(())
    }

    /// Makes sure that a pool that is defined can be used.
    pub(crate) fn activate_pool(&self, name: &str) -> Result<()> {
        let pool = self.pool(name)?;
        if !pool.is_active()? {
            // Its folder too: whoever defined it may have died before that, or be about to do the same.
            let started = pool.create(sys::VIR_STORAGE_POOL_CREATE_WITH_BUILD);
            if started.is_err() && !pool.is_active()? {
                started?;
            }
        }
        Ok(())
    }

    pub(crate) fn pool_facts(&self, name: &str) -> Result<PoolFacts> {
        let info = self.pool(name)?.get_info()?;
        Ok(PoolFacts {
            capacity: info.capacity,
            available: info.available,
        })
    }

    /// Looks at the pool's folder again: what others made or removed there is seen only then.
    pub(crate) fn refresh_pool(&self, name: &str) -> Result<()> {
        self.pool(name)?.refresh(0)?;
        Ok(())
    }

    pub(crate) fn volume_names(&self, pool: &str) -> Result<Vec<String>> {
        let all = self.pool(pool)?.list_all_volumes(0)?;
        all.iter().map(|volume| Ok(volume.get_name()?)).collect()
    }

    pub(crate) fn create_volume(&self, pool: &str, xml: &str) -> Result<()> {
        StorageVol::create_xml(&self.pool(pool)?, xml, 0)?;
        Ok(())
    }

    pub(crate) fn volume_facts(&self, pool: &str, name: &str) -> Result<Option<VolumeFacts>> {
        let Some(volume) = self.find_volume(pool, name)? else {
            return Ok(None);
        };
        let Some(info) = optional(volume.get_info())? else {
            return Ok(None);
        };
        Ok(Some(VolumeFacts {
            path: volume.get_path()?,
            capacity: info.capacity,
            allocation: info.allocation,
        }))
    }

    /// Which of these volumes there are.
    pub(crate) fn which_volumes(&self, pool: &str, names: &[String]) -> Result<Vec<bool>> {
        let pool = self.pool(pool)?;
        let is_there = |name: &String| Ok(optional(StorageVol::lookup_by_name(&pool, name))?.is_some());
        names.iter().map(is_there).collect()
    }

    pub(crate) fn resize_volume(&self, pool: &str, name: &str, bytes: u64) -> Result<()> {
        self.volume(pool, name)?.resize(bytes, 0)?;
        Ok(())
    }

    /// Removes a volume. One that is gone succeeds.
    pub(crate) fn delete_volume(&self, pool: &str, name: &str) -> Result<()> {
        match self.find_volume(pool, name)? {
            Some(volume) => match volume.delete(0).map_err(Fault::from) {
                Err(fault) if fault.kind == FaultKind::NotFound => Ok(()),
                result => result,
            },
            None => Ok(()),
        }
    }

    /// Fills a volume from its beginning.
    pub(crate) fn upload(&self, pool: &str, name: &str, length: u64, source: &mut dyn Source) -> Result<()> {
        let volume = self.volume(pool, name)?;
        let stream = Stream::new(&self.connect, 0)?;
        volume.upload(&stream, 0, length, 0)?;
        send(stream, source)
    }

    /// Reads up to `length` bytes of a volume from `offset` on; fewer where it ends.
    pub(crate) fn download(&self, pool: &str, name: &str, offset: u64, length: u64) -> Result<Vec<u8>> {
        let volume = self.volume(pool, name)?;
        let stream = Stream::new(&self.connect, 0)?;
        volume.download(&stream, offset, length, 0)?;
        receive(stream, length)
    }

    /// Which files the disks of all volumes and domains read, whoever's they are.
    pub(crate) fn disk_files(&self) -> Result<Vec<DiskFiles>> {
        let mut all = Vec::new();
        for pool in self
            .connect
            .list_all_storage_pools(sys::VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE)?
        {
            for volume in pool.list_all_volumes(0)? {
                // One that goes away meanwhile needs nothing.
                let xml = optional(volume.get_xml_desc(0))?;
                all.extend(xml.as_deref().and_then(volume_files));
            }
        }
        for domain in self.connect.list_all_domains(0)? {
            let xml = optional(domain.get_xml_desc(0))?;
            all.extend(xml.as_deref().map(domain_files).into_iter().flatten());
        }
        Ok(all)
    }
}
