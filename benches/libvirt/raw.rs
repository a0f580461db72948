//! The calls that have to be made, and nothing else.

use std::sync::{Mutex, PoisonError};

use virt::connect::Connect;
use virt::domain::Domain;
use virt::domain_snapshot::DomainSnapshot;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt::stream::Stream;

use crate::Error;

/// How large a seed is.
const SEED: usize = (1 << 20) + 4096;

/// What a machine of hwm's is made of, to make others like it.
#[derive(Default, Clone)]
struct Like {
    id: String,
    domain: String,
    backing: String,
}

pub(crate) struct Raw {
    connect: Connect,
    pool: String,
    like: Mutex<Like>,
}

impl Raw {
    pub(crate) fn open(uri: &str, pool: &str) -> Result<Self, Error> {
        Ok(Self {
            connect: Connect::open(Some(uri))?,
            pool: pool.to_owned(),
            like: Mutex::default(),
        })
    }

    fn pool(&self) -> Result<StoragePool, Error> {
        Ok(StoragePool::lookup_by_name(&self.connect, &self.pool)?)
    }

    pub(crate) fn domain(&self, id: &str) -> Result<Domain, Error> {
        Ok(Domain::lookup_by_name(&self.connect, &format!("hwm-{id}"))?)
    }

    /// Looks at a machine of hwm's.
    pub(crate) fn learn(&self, id: &str) -> Result<(), Error> {
        let inactive = virt::sys::VIR_DOMAIN_XML_INACTIVE | virt::sys::VIR_DOMAIN_XML_SECURE;
        let disk = StorageVol::lookup_by_name(&self.pool()?, &format!("hwm-{id}.qcow2"))?.get_xml_desc(0)?;
        let backing = disk
            .split_once("<backingStore>")
            .and_then(|(_, rest)| rest.split_once("<path>"))
            .and_then(|(_, rest)| rest.split_once("</path>"))
            .ok_or("the disk has no image")?;
        *self.like.lock().unwrap_or_else(PoisonError::into_inner) = Like {
            id: id.to_owned(),
            domain: self.domain(id)?.get_xml_desc(inactive)?,
            backing: backing.0.to_owned(),
        };
        Ok(())
    }

    /// Makes and starts a machine like hwm's. `socket`: with a screen on a socket of its own.
    pub(crate) fn create(&self, id: &str, socket: bool) -> Result<(), Error> {
        let like = self.like.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut xml = like.domain.replace(&like.id, id);
        if socket {
            xml = xml.replace("<listen type='none'/>", "<listen type='socket'/>");
        }
        let domain = Domain::define_xml_flags(&self.connect, &xml, virt::sys::VIR_DOMAIN_DEFINE_VALIDATE)?;
        let pool = self.pool()?;
        let volume = |name: String, format: &str, bytes: u64, backing: &str| {
            format!(
                "<volume type='file'><name>{name}</name><capacity unit='bytes'>{bytes}</capacity>\
                 <allocation unit='bytes'>0</allocation><target><format type='{format}'/>\
                 <permissions><mode>0600</mode></permissions></target>{backing}</volume>"
            )
        };
        let seed = volume(format!("hwm-{id}-seed.img"), "raw", SEED as u64, "");
        let seed = StorageVol::create_xml(&pool, &seed, 0)?;
        let stream = Stream::new(&self.connect, 0)?;
        seed.upload(&stream, 0, SEED as u64, 0)?;
        let bytes = vec![0; SEED];
        let mut sent = 0;
        while sent < SEED {
            sent += stream.send(&bytes[sent..SEED.min(sent + 261_120)])?;
        }
        stream.finish()?;
        let backing = format!(
            "<backingStore><path>{}</path><format type='raw'/></backingStore>",
            like.backing
        );
        let disk = volume(format!("hwm-{id}.qcow2"), "qcow2", 10 << 30, &backing);
        StorageVol::create_xml(&pool, &disk, 0)?;
        let log = volume(format!("hwm-{id}-console.log"), "raw", 0, "");
        StorageVol::create_xml(&pool, &log, 0)?;
        domain.create()?;
        Ok(())
    }

    pub(crate) fn delete(&self, id: &str) -> Result<(), Error> {
        let domain = self.domain(id)?;
        domain.destroy()?;
        let pool = self.pool()?;
        for end in [".qcow2", "-console.log", "-seed.img"] {
            StorageVol::lookup_by_name(&pool, &format!("hwm-{id}{end}"))?.delete(0)?;
        }
        domain.undefine()?;
        Ok(())
    }

    pub(crate) fn snapshot(&self, id: &str, name: &str) -> Result<(), Error> {
        let xml = format!(
            "<domainsnapshot><name>{name}</name><memory snapshot='internal'/><disks>\
             <disk name='vda' snapshot='internal'/><disk name='vdb' snapshot='no'/></disks></domainsnapshot>"
        );
        DomainSnapshot::create_xml(&self.domain(id)?, &xml, 0)?;
        Ok(())
    }

    pub(crate) fn revert(&self, id: &str, name: &str) -> Result<(), Error> {
        let snapshot = DomainSnapshot::lookup_by_name(&self.domain(id)?, name, 0)?;
        Ok(snapshot.revert(virt::sys::VIR_DOMAIN_SNAPSHOT_REVERT_FORCE)?)
    }

    pub(crate) fn forget(&self, id: &str, name: &str) -> Result<(), Error> {
        let snapshot = DomainSnapshot::lookup_by_name(&self.domain(id)?, name, 0)?;
        Ok(snapshot.delete(0)?)
    }

    /// All domains in one call: their states, or all figures.
    pub(crate) fn all(&self, figures: bool) -> Result<usize, Error> {
        let mut groups = virt::sys::VIR_DOMAIN_STATS_STATE;
        if figures {
            groups |= virt::sys::VIR_DOMAIN_STATS_CPU_TOTAL
                | virt::sys::VIR_DOMAIN_STATS_BALLOON
                | virt::sys::VIR_DOMAIN_STATS_VCPU
                | virt::sys::VIR_DOMAIN_STATS_INTERFACE
                | virt::sys::VIR_DOMAIN_STATS_BLOCK;
        }
        let flags = virt::sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT;
        Ok(self.connect.get_all_domain_stats(groups, flags)?.len())
    }

    /// Ends and removes all that is in the pool, and the pool.
    pub(crate) fn clean(&self) -> Result<(), Error> {
        for domain in self.connect.list_all_domains(0)? {
            if domain.get_xml_desc(0)?.contains(&format!("/{}/", self.pool)) {
                if domain.is_active()? {
                    domain.destroy()?;
                }
                domain.undefine_flags(virt::sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)?;
            }
        }
        let pool = self.pool()?;
        pool.refresh(0)?;
        for volume in pool.list_all_volumes(0)? {
            volume.delete(0)?;
        }
        pool.destroy()?;
        pool.delete(0)?;
        Ok(pool.undefine()?)
    }
}
