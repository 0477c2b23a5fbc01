// FLUXLOG_PROTO is the directory with fluxlog/v1/*.proto (default: that of this repository).
fn main() {
    let root = std::env::var("FLUXLOG_PROTO").unwrap_or_else(|_| "../../../proto".into());
    let files = ["log", "consume"].map(|name| format!("{root}/fluxlog/v1/{name}.proto"));
    tonic_prost_build::configure().build_server(false).compile_protos(&files, &[root]).unwrap();
}
