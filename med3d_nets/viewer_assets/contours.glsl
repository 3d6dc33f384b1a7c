#version 300 es
// A slice of the image with truth and prediction, each filled, as a contour, or neither. NiiVue's own shader has one
// kind of contour for both. Its uniforms keep their names; what they say here:
//   drawOpacity, drawRimOpacity: opacity of the truth's fill; width of its contour in pixels, 0 for none
//   overlayAlphaShader, overlayOutlineWidth: the same of the prediction, whose contour is dashed
precision highp int;
precision highp float;
// NiiVue finds one name in a declaration.
uniform highp sampler3D volume;
uniform highp sampler3D overlay;
uniform highp sampler3D drawing;
uniform highp sampler2D colormap;
uniform float overlays;
uniform float opacity;
uniform float drawOpacity;
uniform float drawRimOpacity;
uniform float overlayAlphaShader;
uniform float overlayOutlineWidth;
in vec3 texPos;
out vec4 color;

const float DASH = 8.0;

ivec3 voxelAt(vec3 place, ivec3 size) {
  return clamp(ivec3(place * vec3(size)), ivec3(0), size - 1);
}

vec4 truthAt(vec3 place) {
  float value = texelFetch(drawing, voxelAt(place, textureSize(drawing, 0)), 0).r;
  float rows = float(textureSize(colormap, 0).y);
  vec3 shown = texture(colormap, vec2((value * 255.0 + 0.5) / 256.0, (rows - 0.5) / rows)).rgb;
  return value > 0.0 ? vec4(shown, 1.0) : vec4(0.0);
}

vec4 predictionAt(vec3 place) {
  vec4 found = texelFetch(overlay, voxelAt(place, textureSize(overlay, 0)), 0);
  return overlays > 0.0 && found.a > 0.0 ? vec4(found.rgb, 1.0) : vec4(0.0);
}

vec4 labelAt(vec3 place, bool isTruth) {
  return isTruth ? truthAt(place) : predictionAt(place);
}

// Whether another class, or none, is within so many pixels: the contour lies inside of what it surrounds.
bool isEdge(vec3 place, vec4 here, float width, bool isTruth) {
  vec3 right = dFdx(texPos) * width, up = dFdy(texPos) * width;
  for (int row = -1; row <= 1; row++)
    for (int column = -1; column <= 1; column++)
      if (distance(labelAt(place + float(column) * right + float(row) * up, isTruth), here) > 0.01)
        return true;
  return false;
}

void main() {
  vec4 background = texture(volume, texPos);
  color = vec4(background.rgb, opacity);
  vec4 truth = truthAt(texPos), prediction = predictionAt(texPos);
  color.rgb = mix(color.rgb, prediction.rgb, prediction.a * overlayAlphaShader);
  color.rgb = mix(color.rgb, truth.rgb, truth.a * drawOpacity);
  bool isTruthEdge = truth.a > 0.0 && drawRimOpacity > 0.0 && isEdge(texPos, truth, drawRimOpacity, true);
  if (isTruthEdge)
    color.rgb = truth.rgb;
  bool isDash = mod(gl_FragCoord.x + gl_FragCoord.y, DASH) < 0.6 * DASH;
  if (isDash && prediction.a > 0.0 && overlayOutlineWidth > 0.0 && isEdge(texPos, prediction, overlayOutlineWidth, false)) {
    // Dashes on a line of their own colour would not be seen.
    bool isHidden = isTruthEdge && distance(truth.rgb, prediction.rgb) < 0.01;
    color.rgb = mix(prediction.rgb, vec3(1.0), isHidden ? 0.6 : 0.0);
  }
}
