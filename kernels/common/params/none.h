// Parameters of the kernels: flat structs, a header a family, mirrored in Rust with size
// and offset asserts (src/backend/cuda/params). Device addresses are 64-bit integers so
// that both sides agree on their size; shapes stand beside them.
#pragma once

// "No such index" in any field that is one.
#define KV_NONE 0xffffffffu
