// The page around NiiVue: which case, plane, overlays and window are shown, and the keys. It knows no file and no network.
const { DRAG_MODE, Niivue, NVImage, SLICE_TYPE, SHOW_RENDER, cmapper } = globalThis.niivue
const data = JSON.parse(document.getElementById('data').textContent)
const find = (selector) => document.querySelector(selector)
const PLANES = { axial: 2, coronal: 1, sagittal: 0 } // the world's axis across it
const SIDES = { axial: 'RLAP', coronal: 'RLSI', sagittal: 'APSI' } // left, right, top and bottom
const CONTOUR = 2 // width, in pixels of the page
const CROSSHAIR = 0.5 // width, in percent of the image's
const PAGE = 5 // slices

const nv = new Niivue({
  backColor: [0, 0, 0, 1],
  crosshairColor: [0.29, 0.66, 1, 0.7],
  crosshairWidth: CROSSHAIR,
  crosshairWidthUnit: 'percent',
  clipPlaneHotKey: '',
  cycleClipPlaneHotKey: '',
  viewModeHotKey: '',
  dragAndDropEnabled: false,
  isOrientationTextVisible: false, // it is in the wrong place where one plane is shown; see label()
  isRadiologicalConvention: true,
  loadingText: '',
  logLevel: 'error',
  mouseEventConfig: {
    leftButton: { primary: DRAG_MODE.crosshair, withCtrl: DRAG_MODE.pan },
    rightButton: DRAG_MODE.windowing,
    centerButton: DRAG_MODE.pan
  },
  multiplanarPadPixels: 4,
  multiplanarShowRender: SHOW_RENDER.NEVER,
  sagittalNoseLeft: true,
  touchEventConfig: { singleTouch: DRAG_MODE.crosshair, doubleTouch: DRAG_MODE.pan }
})
const state = { index: -1, plane: 'all', active: 'axial', shown: { truth: true, prediction: true } }

function show(message) {
  find('#message').textContent = message
  find('#message').hidden = !message
}

function press(button, on) {
  button.setAttribute('aria-pressed', String(on))
}

function rgb(colour) {
  return [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16))
}

// A table of colours by class, of truth or prediction; the background is clear.
function palette(kind) {
  const colours = [[0, 0, 0], ...data.classes.map((each) => rgb(each[kind]))]
  const [R, G, B] = [0, 1, 2].map((channel) => colours.map((colour) => colour[channel]))
  return { R, G, B, A: colours.map((_, value) => (value ? 255 : 0)), I: colours.map((_, value) => value) }
}

function volume(index, name, more = {}) {
  const base64 = document.getElementById(`${name}-${index}`).textContent
  return NVImage.loadFromBase64({ base64, name: `${name}.nii.gz`, colorbarVisible: false, ...more })
}

async function openCase(index) {
  const found = data.cases[index]
  show('Loading')
  document.body.removeAttribute('data-ready')
  for (const control of find('#cases').children) control.disabled = true
  for (const old of [...nv.volumes].reverse()) nv.removeVolume(old)
  nv.closeDrawing()
  state.index = index
  state.truth = state.prediction = undefined
  nv.drawLut = cmapper.makeDrawLut(palette('truth')) // goes to the graphics card with the volumes
  const [lower, upper] = found.window
  const image = await volume(index, 'image', { colormap: 'gray', cal_min: lower, cal_max: upper })
  nv.addVolume(image)
  if (found.labels.includes('prediction')) {
    state.prediction = await volume(index, 'prediction')
    state.prediction.setColormapLabel(palette('prediction'))
    nv.addVolume(state.prediction)
  }
  if (found.labels.includes('truth')) {
    state.truth = await volume(index, 'truth')
    nv.loadDrawing(state.truth)
  }
  describe(found)
  reset()
  show('')
  document.body.dataset.ready = index
}

function element(tag, textContent) {
  return Object.assign(document.createElement(tag), { textContent })
}

// The parts of the page that tell of a case: which overlays it has, the table of classes, the windows to choose from.
function describe(found) {
  find('#case').value = state.index
  for (const kind of ['truth', 'prediction']) find(`#${kind}`).hidden = !found.labels.includes(kind)
  find('#opacity-row').hidden = find('#legend').hidden = !found.labels.length
  const text = (value, digits) => (value === undefined ? '' : value === null ? '–' : value.toFixed(digits))
  const millilitres = (value) => text(value, value < 10 ? 2 : 1)
  const rows = data.classes.map((each, place) => {
    const sizes = [found.truthVolumes[place], found.predictionVolumes[place]].map(millilitres)
    const row = element('tr', '')
    row.append(...[each.name, text(found.dice[place], 3), ...sizes].map((cell) => element('td', cell)))
    for (const colour of new Set([each.prediction, each.truth])) {
      row.firstChild.prepend(element('i', ''))
      row.firstChild.firstChild.style.background = colour
    }
    return row
  })
  find('#legend tbody').replaceChildren(...rows)
  const buttons = Object.entries(found.windows).map(([name, [lower, upper]]) => {
    const button = element('button', name)
    button.addEventListener('click', () => setWindow(lower, upper))
    return button
  })
  find('#windows').replaceChildren(...buttons)
  find('#notes').textContent = [...found.notes, data.note].join(' ')
}

// As at the start: slices through the labels, the whole image in sight, the window chosen from the data.
function reset() {
  const found = data.cases[state.index]
  nv.scene.pan2Dxyzmm = [0, 0, 0, 1]
  nv.scene.crosshairPos = nv.mm2frac(found.start, 0, true)
  const { cal_min: lower, cal_max: upper } = nv.volumes[0]
  if (lower !== found.window[0] || upper !== found.window[1]) setWindow(...found.window)
  setPlane(state.plane)
}

function setWindow(lower, upper) {
  const image = nv.volumes[0]
  image.cal_min = lower
  image.cal_max = upper
  nv.updateGLVolume()
  draw()
}

function setPlane(plane) {
  const types = { axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL }
  state.plane = plane
  if (plane !== 'all') state.active = plane
  for (const button of document.querySelectorAll('[data-plane]')) press(button, button.dataset.plane === plane)
  nv.setSliceType(types[plane] ?? SLICE_TYPE.MULTIPLANAR)
  draw()
}

// Tell the shader, see contours.glsl, what to draw of truth and prediction, and draw.
function draw() {
  const width = Math.max(1, CONTOUR * (globalThis.devicePixelRatio || 1))
  const drawn = {}
  for (const kind of ['truth', 'prediction']) {
    const section = find(`#${kind}`)
    const how = find(`#${kind} .kind`).value
    const on = state[kind] !== undefined && state.shown[kind]
    section.dataset.kind = how
    if (data.classes.length === 1) section.querySelector('.line').style.color = data.classes[0][kind]
    press(section.querySelector('.visible'), state.shown[kind])
    const fill = on && how === 'fill' ? Number(find('#opacity').value) : 0
    drawn[kind] = { fill, contour: on && how === 'contour' ? width : 0 }
  }
  nv.drawOpacity = drawn.truth.fill
  nv.drawRimOpacity = drawn.truth.contour
  nv.overlayAlphaShader = drawn.prediction.fill
  nv.overlayOutlineWidth = drawn.prediction.contour
  nv.drawScene()
  tell()
  label()
}

// Where the crosshair is, and what is there.
function tell() {
  const image = nv.volumes[0]
  if (!image) return
  const found = data.cases[state.index]
  const mm = [...nv.frac2mm(nv.scene.crosshairPos, 0, true)].slice(0, 3)
  const voxel = found.toVoxel.slice(0, 3).map((row) => Math.round(row[0] * mm[0] + row[1] * mm[1] + row[2] * mm[2] + row[3]))
  find('#place').textContent =
    `${mm.map((value, axis) => `${'RAS'[axis]} ${value.toFixed(1)}`).join('  ')} mm · voxel ${voxel.join(', ')}`
  const valueOf = (of) => of.getValue(...of.mm2vox(mm))
  const nameOf = (value) => (value ? data.classes[value - 1].name : 'background')
  const parts = [`${Number(valueOf(image).toPrecision(5))}${found.modality === 'ct' ? ' HU' : ''}`]
  if (state.truth) parts.push(`truth: ${nameOf(valueOf(state.truth))}`)
  if (state.prediction) parts.push(`prediction: ${nameOf(valueOf(state.prediction))}`)
  find('#value').textContent = parts.join(' · ')
  const { count, at } = slice()
  Object.assign(find('#slice'), { max: count - 1, value: at })
  find('#zoom').value = nv.scene.pan2Dxyzmm[3]
  find('#slice-title').textContent = `Slice, ${state.active}: ${at + 1} of ${count}`
  const rounded = (value) => Number(value.toPrecision(4))
  find('#window-values').textContent = `${rounded(image.cal_min)} to ${rounded(image.cal_max)}${found.modality === 'ct' ? ' HU' : ''}`
  for (const button of find('#windows').children) {
    const [lower, upper] = found.windows[button.textContent]
    press(button, image.cal_min === lower && image.cal_max === upper)
  }
}

// Names of planes and sides, over the slices.
function label() {
  const scale = find('#canvas').clientWidth / find('#canvas').width
  const tiles = nv.screenSlices.filter((tile) => Object.keys(PLANES)[tile.axCorSag])
  const boxes = tiles.map((tile) => {
    const plane = Object.keys(PLANES)[tile.axCorSag]
    const box = element('div', '')
    const [left, top, width, height] = tile.leftTopWidthHeight.map((pixels) => `${pixels * scale}px`)
    Object.assign(box.style, { left, top, width, height })
    const { at, count } = slice(plane)
    const texts = [...SIDES[plane], `${plane} ${at + 1}/${count}`]
    box.append(...texts.map((text) => element('span', text)))
    return box
  })
  find('#labels').replaceChildren(...boxes)
}

// Number of slices of a plane, and the one that the crosshair is in, from 0.
function slice(plane = state.active) {
  const axis = PLANES[plane]
  const count = nv.volumes[0].dimsRAS[axis + 1]
  return { axis, count, at: Math.min(count - 1, Math.max(0, Math.floor(nv.scene.crosshairPos[axis] * count))) }
}

function goTo(at) {
  const { axis, count } = slice()
  nv.scene.crosshairPos[axis] = (Math.min(count - 1, Math.max(0, at)) + 0.5) / count
  draw()
}

function toggle(kind) {
  state.shown[kind] = !state.shown[kind]
  draw()
}

function toggleKind(kind) {
  const select = find(`#${kind} .kind`)
  select.value = select.value === 'fill' ? 'contour' : 'fill'
  draw()
}

// The crosshair stays where it is.
function setZoom(zoom) {
  const [x, y, z, before] = nv.scene.pan2Dxyzmm
  const next = Math.min(Number(find('#zoom').max), Math.max(1, zoom))
  const mm = nv.frac2mm(nv.scene.crosshairPos)
  nv.scene.pan2Dxyzmm = [...[x, y, z].map((pan, axis) => pan + (before - next) * mm[axis]), next]
  draw()
}

function zoomBy(factor) {
  setZoom(nv.scene.pan2Dxyzmm[3] * factor)
}

function toggleCrosshair() {
  nv.opts.crosshairWidth = nv.opts.crosshairWidth ? 0 : CROSSHAIR
  draw()
}

function setOpacity(change) {
  find('#opacity').value = Number(find('#opacity').value) + change
  draw()
}

function changeCase(step) {
  const index = state.index + step
  if (data.cases[index]) run(openCase(index))
}

const KEYS = {
  ArrowUp: () => goTo(slice().at + 1),
  ArrowRight: () => goTo(slice().at + 1),
  k: () => goTo(slice().at + 1),
  ArrowDown: () => goTo(slice().at - 1),
  ArrowLeft: () => goTo(slice().at - 1),
  j: () => goTo(slice().at - 1),
  PageUp: () => goTo(slice().at + PAGE),
  PageDown: () => goTo(slice().at - PAGE),
  1: () => setPlane('axial'),
  2: () => setPlane('coronal'),
  3: () => setPlane('sagittal'),
  4: () => setPlane('all'),
  t: () => toggle('truth'),
  p: () => toggle('prediction'),
  T: () => toggleKind('truth'),
  P: () => toggleKind('prediction'),
  c: toggleCrosshair,
  z: () => zoomBy(1.25),
  Z: () => zoomBy(0.8),
  '+': () => setOpacity(0.1),
  '-': () => setOpacity(-0.1),
  '[': () => changeCase(-1),
  ']': () => changeCase(1),
  r: reset,
  '?': () => find('#help').showModal()
}

function listen() {
  window.addEventListener(
    'keydown',
    (event) => {
      const isOurs = event.target.id === 'canvas' || !event.target.matches('select, input[type="range"]') || event.key.length === 1
      if (!isOurs || event.ctrlKey || event.metaKey || event.altKey || find('#help').open || !document.body.dataset.ready) return
      if (!KEYS[event.key]) return
      event.preventDefault()
      event.stopPropagation() // NiiVue has keys of its own
      KEYS[event.key]()
    },
    true
  )
  // Keys act on the plane that the pointer was in last.
  find('#canvas').addEventListener('pointermove', (event) => {
    const box = event.target.getBoundingClientRect()
    const scale = event.target.width / box.width
    const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale]
    const tile = nv.screenSlices.find(({ leftTopWidthHeight: [left, top, width, height] }) => {
      return x >= left && x < left + width && y >= top && y < top + height
    })
    const plane = Object.keys(PLANES)[tile?.axCorSag]
    if (plane && plane !== state.active) {
      state.active = plane
      tell()
    }
  })
  for (const button of document.querySelectorAll('[data-plane]')) {
    button.addEventListener('click', () => setPlane(button.dataset.plane))
  }
  for (const kind of ['truth', 'prediction']) {
    find(`#${kind} .visible`).addEventListener('click', () => toggle(kind))
    find(`#${kind} .kind`).addEventListener('change', draw)
  }
  find('#opacity').addEventListener('input', draw)
  find('#slice').addEventListener('input', (event) => goTo(Number(event.target.value)))
  find('#zoom').addEventListener('input', (event) => setZoom(Number(event.target.value)))
  find('#canvas').addEventListener(
    'wheel',
    (event) => {
      if (!event.ctrlKey && !event.shiftKey) return // NiiVue changes the slice
      event.preventDefault()
      event.stopImmediatePropagation()
      zoomBy((event.deltaY || event.deltaX) < 0 ? 1.1 : 1 / 1.1)
    },
    { capture: true, passive: false }
  )
  find('#smooth').addEventListener('change', (event) => {
    nv.setInterpolation(!event.target.checked)
    draw()
  })
  find('#case').addEventListener('change', (event) => run(openCase(Number(event.target.value))))
  find('#previous-case').addEventListener('click', () => changeCase(-1))
  find('#next-case').addEventListener('click', () => changeCase(1))
  find('#help-button').addEventListener('click', () => find('#help').showModal())
  nv.onLocationChange = () => {
    tell()
    label()
  }
  new ResizeObserver(() => state.index >= 0 && requestAnimationFrame(label)).observe(find('#canvas'))
  nv.onIntensityChange = tell
}

function run(promise) {
  const enable = () => [...find('#cases').children].forEach((control) => (control.disabled = false))
  promise.catch((error) => show(`This case cannot be shown.\n${error}`)).finally(enable)
}

async function start() {
  if (!document.createElement('canvas').getContext('webgl2')) {
    show('This browser has no WebGL 2, which the viewer needs.\nSwitch hardware acceleration on, or take another browser.')
    return
  }
  await nv.attachToCanvas(find('#canvas'))
  nv.setCustomSliceShader(document.getElementById('shader').textContent)
  find('#prediction .kind').value = data.cases.some((each) => each.labels.includes('truth')) ? 'fill' : 'contour'
  find('#cases').hidden = data.cases.length < 2
  find('#case').append(...data.cases.map((each, index) => new Option(each.title, index)))
  listen()
  await openCase(0)
}

globalThis.viewer = { nv, state }
run(start())
