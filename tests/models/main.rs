//! What lies above the kernels, as a library: the cache's books, tokenizers, models and the
//! engine on the CPU and on devices, retrieval, evaluation.

mod cache_properties;
mod chat_templates;
mod engine_device;
mod eval;
mod eval_files;
mod eval_tasks;
mod model_files;
mod model_golden;
mod outliers;
mod rag;
mod rag_files;
mod rag_search;
#[path = "../kernels/common/random.rs"]
mod random;
mod soak;
#[path = "../tiny_model/mod.rs"]
mod tiny_model;
mod tokenizer;
mod uploads;
