// Captures of libcuda.cpp: one stream at a time may capture, by its own thread. What is
// enqueued on it is kept, with its parameters, to run at each launch of the graph.
#pragma once

#include <functional>

using Work = std::vector<std::function<void()>>;

static struct {
    Handle stream = nullptr; // null: none captures
    bool spoiled = false;
    Work work;
} capture;
static int graphs; // and what was instantiated from them

// Runs the work, or keeps it if the stream captures.
static Result enqueue(Handle stream, std::function<void()> work) {
    if (capture.stream && capture.stream == stream) capture.work.push_back(std::move(work));
    else work();
    return SUCCESS;
}

// What must not be asked of a stream that captures.
static Result outside_capture(Handle stream) {
    if (!capture.stream || capture.stream != stream) return SUCCESS;
    capture.spoiled = true;
    return 900; // CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
}

extern "C" {

Result cuStreamBeginCapture_v2(Handle stream, int mode) {
    IN_CONTEXT;
    if (!stream || capture.stream) return 900;
    if (mode != 1) return INVALID_VALUE; // CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    capture.stream = stream;
    return SUCCESS;
}
Result cuStreamIsCapturing(Handle stream, int* status) {
    IN_CONTEXT;
    *status = stream && capture.stream == stream ? 1 + capture.spoiled : 0;
    return SUCCESS;
}
Result cuStreamEndCapture(Handle stream, Handle* graph) {
    IN_CONTEXT;
    if (!capture.stream || capture.stream != stream) return 401; // CUDA_ERROR_ILLEGAL_STATE
    bool spoiled = capture.spoiled;
    *graph = spoiled ? nullptr : new Work(std::move(capture.work));
    graphs += !spoiled;
    capture = {};
    return spoiled ? 901 : SUCCESS; // CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
}
Result cuGraphInstantiateWithFlags(Handle* ready, Handle graph, unsigned long long flags) {
    IN_CONTEXT;
    if (!graph || flags) return INVALID_VALUE;
    if (pretend.instantiate) return pretend.instantiate;
    ++graphs;
    return *ready = new Work(*static_cast<Work*>(graph)), SUCCESS;
}
Result cuGraphLaunch(Handle ready, Handle stream) {
    IN_CONTEXT;
    for (auto& work : *static_cast<Work*>(ready)) enqueue(stream, work);
    return SUCCESS;
}
Result cuGraphDestroy(Handle graph) {
    IN_CONTEXT;
    --graphs;
    return delete static_cast<Work*>(graph), SUCCESS;
}
Result cuGraphExecDestroy(Handle ready) { return cuGraphDestroy(ready); }
}
