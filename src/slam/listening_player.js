// A continuation's sound, heard and drawn while it is made.
//
// `props.value` is { rate, id, chunks }: all chunks so far of one continuation, each 16-bit samples in base64.
// New ones are queued where the last ended, to the sample. The page's library gives `element`, `props`, `watch`.

const canvas = element.querySelector("canvas");
const colours = getComputedStyle(element.querySelector(".slam-player"));
const said = element.querySelector("span");
const state = (window.slamPlayer = { seconds: 0, chunks: 0, gaps: 0, playing: false });
const LEAD = 0.5; // seconds that a first chunk waits, so that the second, which is longer, is there in time
let context, id, begin, drawing;
let sources = [];
let sound = []; // of each chunk: its place in seconds, its samples

function wake() {
  // at the sound's own rate, so that nothing is resampled chunk by chunk
  context ??= new AudioContext({ sampleRate: props.value.rate });
  context.resume();
}
// a browser lets no page sound before it was touched
for (const kind of ["pointerdown", "keydown", "click"]) document.addEventListener(kind, wake, { capture: true });

function samplesOf(chunk) {
  const bytes = Uint8Array.from(atob(chunk), (letter) => letter.charCodeAt(0));
  return Float32Array.from(new Int16Array(bytes.buffer), (sample) => sample / 32767);
}

function forget(next) {
  for (const source of sources) source.stop();
  [sources, sound, id] = [[], [], next];
  Object.assign(state, { seconds: 0, chunks: 0, gaps: 0 });
}

function queue(samples) {
  const buffer = context.createBuffer(1, samples.length, context.sampleRate);
  buffer.copyToChannel(samples, 0);
  const source = context.createBufferSource();
  source.buffer = buffer;
  source.connect(context.destination);
  const now = context.currentTime;
  if (!sound.length) begin = now + LEAD;
  else if (begin + state.seconds < now) {
    begin = now + LEAD - state.seconds; // late: a pause, and on from there
    state.gaps += 1;
  }
  source.start(begin + state.seconds);
  sources.push(source);
  sound.push({ at: state.seconds, samples });
  state.seconds += samples.length / context.sampleRate;
  state.chunks += 1;
}

function draw() {
  const played = Math.min(Math.max(context.currentTime - begin, 0), state.seconds) || 0;
  const scale = window.devicePixelRatio || 1;
  const width = (canvas.width = canvas.clientWidth * scale);
  const height = (canvas.height = canvas.clientHeight * scale);
  const pen = canvas.getContext("2d");
  const whole = Math.max(state.seconds, 4);
  const bar = 3 * scale;
  for (let x = 0; x < width; x += bar) {
    const [from, to] = [(x / width) * whole, ((x + bar) / width) * whole];
    let peak = 0;
    for (const { at, samples } of sound) {
      const last = Math.min((to - at) * context.sampleRate, samples.length);
      for (let i = Math.max(0, Math.floor((from - at) * context.sampleRate)); i < last; i += 8)
        peak = Math.max(peak, Math.abs(samples[i]));
    }
    pen.fillStyle = colours.getPropertyValue(from < played ? "--slam-played" : "--slam-unplayed");
    const tall = from < state.seconds ? Math.max(2 * scale, Math.sqrt(peak) * height) : scale;
    pen.fillRect(x, (height - tall) / 2, bar - scale, tall);
  }
  said.textContent = `${played.toFixed(1)} of ${state.seconds.toFixed(1)} s`;
  state.playing = played < state.seconds;
  drawing = state.playing ? requestAnimationFrame(draw) : null;
}

watch("value", () => {
  const value = props.value;
  if (!value) return;
  wake();
  if (value.id !== id) forget(value.id);
  for (const chunk of value.chunks.slice(state.chunks)) queue(samplesOf(chunk));
  if (!drawing) draw();
});
