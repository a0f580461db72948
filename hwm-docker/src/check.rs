//! What only the node knows of a planned container.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use hwm_core::backend::{CheckReport, Result, Workload};
use hwm_core::config::{Config, GpuRequest, NetworkMode, Protocol};
use hwm_core::refusal::Violation;
use hwm_core::units::{Bytes, Cores};

use crate::Inner;
use crate::image;
use crate::observe::held_ports;

/// The least memory with which an engine starts a container.
const LEAST_MEMORY: Bytes = Bytes::from_mb(6);

impl Inner {
    pub(crate) async fn check(&self, planned: &Workload) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        let config = &planned.config;
        if let Err(error) = image::reference(config) {
            let field = match config {
                Config::Inference(_) => "config.dockerImage",
                Config::Container(_) | Config::Machine(_) => "config.imageName",
            };
            report.violations.push(Violation::new(field, error.message));
        }
        self.check_paths(config, &mut report).await;
        self.check_node(config, &mut report).await?;
        self.check_ports(config, &mut report).await?;
        Ok(report)
    }

    /// Volumes and local models. Paths are the engine's: one on another machine cannot be looked at.
    async fn check_paths(&self, config: &Config, report: &mut CheckReport) {
        let mut volumes = Vec::new();
        let mut model = None;
        match config {
            Config::Container(c) => volumes.extend(c.volumes.iter().map(|v| v.host_path.clone())),
            Config::Inference(c) => model = Some(c.model_path.clone()),
            Config::Machine(_) => {}
        }
        if volumes.is_empty() && model.is_none() {
            return;
        }
        if !self.client.endpoint().is_local() {
            let field = if model.is_some() {
                "config.modelPath"
            } else {
                "config.volumes"
            };
            report.violations.push(Violation::new(
                field,
                "the engine runs on another machine, whose paths cannot be checked",
            ));
            return;
        }
        let (roots, models) = (self.volume_roots.clone(), self.models.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let volumes: Vec<_> = volumes
                .into_iter()
                .enumerate()
                .map(|(i, path)| {
                    let found = roots.resolve(&path).map(Some).map_err(|e| e.to_string());
                    (format!("config.volumes[{i}].hostPath"), path, found)
                })
                .collect();
            let model = model.map(|path| {
                let found = models.check(&path);
                ("config.modelPath".to_owned(), path, found)
            });
            volumes.into_iter().chain(model).collect::<Vec<_>>()
        });
        for (field, path, found) in looked.await.unwrap_or_default() {
            match found {
                Ok(Some(resolved)) => {
                    let resolved = resolved.to_string_lossy().into_owned();
                    report.resolved_paths.insert(path, resolved);
                }
                Ok(None) => {}
                Err(message) => report.violations.push(Violation::new(field, message)),
            }
        }
    }

    async fn check_node(&self, config: &Config, report: &mut CheckReport) -> Result<()> {
        let mut add = |field: &str, message: String| report.violations.push(Violation::new(field, message));
        if let Config::Container(c) = config
            && c.network_mode == NetworkMode::Host
            && !self.options.allow_host_network
        {
            let message = "the operator of this node does not allow host networking: use bridge";
            add("config.networkMode", message.to_owned());
        }
        let about = self.engine.about(&self.client).await?;
        if let (Some(wanted), Some(has)) = (config.cpu(), about.info.cpu()) {
            if wanted > has {
                add(
                    "config.cpuCores",
                    format!("must be at most {}, the cores of this node", has.as_f64()),
                );
            }
            if wanted < Cores::from_f64(0.01) {
                add("config.cpuCores", "must be at least 0.01".to_owned());
            }
        }
        if config.ram().is_some_and(|ram| ram < LEAST_MEMORY) {
            add(
                "config.ramLimit",
                format!(
                    "must be at least {} MB, or no container starts",
                    LEAST_MEMORY.as_mb()
                ),
            );
        }
        if config.gpu_request() != GpuRequest::None && about.gpus.is_none() {
            let (names, chosen) = match config {
                Config::Container(c) => (&c.gpu_device_ids, c.gpu_config.is_some()),
                Config::Inference(c) => (&c.gpu_device_ids, c.gpu_config.is_some()),
                Config::Machine(_) => return Ok(()),
            };
            let field = if chosen && names.is_empty() {
                "config.gpuConfig"
            } else {
                "config.gpuDeviceIds"
            };
            let message =
                "this node's container engine cannot attach GPUs: install NVIDIA's container toolkit";
            add(field, message.to_owned());
        }
        Ok(())
    }

    /// Ports that something else on this machine listens on. Those that our own containers hold are the
    /// manager's to judge.
    async fn check_ports(&self, config: &Config, report: &mut CheckReport) -> Result<()> {
        let Config::Container(c) = config else {
            return Ok(());
        };
        if c.network_mode != NetworkMode::Bridge || !self.client.endpoint().is_local() {
            return Ok(());
        }
        let asked = c.container_ports.iter().enumerate();
        let asked = asked.filter_map(|(i, p)| Some((i, p.host_port?, p.protocol)));
        let taken: Vec<_> = asked
            .filter(|(_, port, protocol)| !is_free(self.options.publish_address, *port, *protocol))
            .collect();
        if taken.is_empty() {
            return Ok(());
        }
        let held = held_ports(&self.client, &self.options.owner);
        let held = self.client.look("looking for taken ports", held).await?;
        for (i, port, protocol) in taken {
            if !held
                .iter()
                .any(|(p, proto)| *p == port && proto == protocol.as_str())
            {
                report.violations.push(Violation::new(
                    format!("config.containerPorts[{i}].hostPort"),
                    format!(
                        "{port}/{} is taken on the node by something that is not hwm's: choose another, or leave it out",
                        protocol.as_str()
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// Whether a port can be listened on. What cannot be told, such as a port that needs privileges which
/// the engine has, counts as free.
fn is_free(address: IpAddr, port: u16, protocol: Protocol) -> bool {
    let address = SocketAddr::new(address, port);
    let bound = match protocol {
        Protocol::Tcp => TcpListener::bind(address).map(drop),
        Protocol::Udp => UdpSocket::bind(address).map(drop),
    };
    bound
        .err()
        .is_none_or(|e| e.kind() != std::io::ErrorKind::AddrInUse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_listened_on_is_taken() {
        let any = IpAddr::from([127, 0, 0, 1]);
        let listener = TcpListener::bind((any, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(!is_free(any, port, Protocol::Tcp));
        assert!(is_free(any, port, Protocol::Udp));
        drop(listener);
        assert!(is_free(any, port, Protocol::Tcp));
    }
}
