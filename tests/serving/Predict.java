import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.tensorflow.SavedModelBundle;
import org.tensorflow.ndarray.NdArrays;
import org.tensorflow.types.TFloat32;
import org.tensorflow.types.TString;

/**
 * Answers files of one serialized tf.Example each; prints a line per output.
 *
 * <p>java -cp 'JARS/*' Predict.java MODEL_FOLDER EXAMPLE_FILE...
 */
class Predict {
  public static void main(String[] arguments) throws Exception {
    try (var model = SavedModelBundle.load(arguments[0], "serve")) {
      var serve = model.function("serialized_examples");
      for (var file : List.of(arguments).subList(1, arguments.length)) {
        var example = Files.readAllBytes(Path.of(file));
        var vector = NdArrays.vectorOfObjects(example);
        try (var examples = TString.tensorOfBytes(vector);
            var answer = serve.call(Map.of("examples", examples))) {
          for (var output : answer) {
            var line = new StringBuilder(output.getKey());
            if (output.getValue() instanceof TString strings) {
              strings.scalars().forEach(s -> line.append(' ').append(s.getObject()));
            } else {
              var floats = (TFloat32) output.getValue();
              floats.scalars().forEach(f -> line.append(' ').append(f.getFloat()));
            }
            System.out.println(line);
          }
        }
      }
    }
  }
}
