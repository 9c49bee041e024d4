//! The control commands of the log.

use super::Vlog;
use crate::unixctl::Registry;

impl Vlog {
    /// Registers `vlog/set`, `vlog/list` and the others.
    pub fn register_commands(&self, registry: &Registry) {
        let any = usize::MAX;
        let vlog = self.clone();
        registry.register("vlog/set", "{spec | PATTERN:destination:pattern}", 0, any, move |args| {
            if args.is_empty() {
                vlog.set("").map_err(|error| error.to_string())?;
            }
            for spec in args {
                vlog.set(spec).map_err(|error| error.to_string())?;
            }
            Ok(String::new())
        });
        let vlog = self.clone();
        registry.register("vlog/list", "", 0, 0, move |_| Ok(vlog.levels()));
        let vlog = self.clone();
        registry.register("vlog/list-pattern", "", 0, 0, move |_| Ok(vlog.patterns()));
        let vlog = self.clone();
        registry.register("vlog/reopen", "", 0, 0, move |_| match vlog.file_path() {
            Some(_) => vlog.reopen().map(|()| String::new()).map_err(|error| error.to_string()),
            None => Err("Logging to file not configured".to_owned()),
        });
        let vlog = self.clone();
        registry.register("vlog/close", "", 0, 0, move |_| {
            vlog.close();
            Ok(String::new())
        });
        for (name, honor) in [("vlog/enable-rate-limit", true), ("vlog/disable-rate-limit", false)] {
            let vlog = self.clone();
            registry.register(name, "[module]...", 0, any, move |args| {
                let all = [String::from("any")];
                for module in if args.is_empty() { &all[..] } else { args } {
                    let module = Some(module.as_str()).filter(|module| !module.eq_ignore_ascii_case("any"));
                    vlog.honor_rate_limits(module, honor).map_err(|error| error.to_string())?;
                }
                Ok(String::new())
            });
        }
        registry.register_hidden("vlog/message", 1, 1, |args| {
            tracing::info!("user-message: {}", args.concat());
            Ok(String::new())
        });
    }
}
